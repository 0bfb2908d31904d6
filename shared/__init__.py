"""What every part of the app stands on; see docs/architecture.md for the layers."""
