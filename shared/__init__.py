"""What every part of the app stands on; see docs/architecture.md for the layers."""

VERSION = "0.1.0"
