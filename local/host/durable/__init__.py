"""The durable half of the host: history and queues in SQLite, episodes, and the management API over HTTP."""
