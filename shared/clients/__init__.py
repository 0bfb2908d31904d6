"""The only place that talks to other systems and imports their SDKs."""
