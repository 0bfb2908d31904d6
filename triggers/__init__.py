"""The HTTP API and the timer: they start, read and control runs, and do no work of their own."""
