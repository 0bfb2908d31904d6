"""``python -m tools.migrate``: the operator's command line over the HTTP API."""
