"""What stands in for Azure on one machine: the embedded host, the emulators and the demo. Not deployed."""
