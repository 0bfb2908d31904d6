"""The use cases: planning, transfer, verification, ledger, manifest. Written over ports, so they know no vendor."""
