"""The data that crosses borders: job specs, activity requests and outcomes, records of the manifest. No I/O."""
