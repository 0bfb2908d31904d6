"""What all suites have in common."""

from hypothesis import settings

# A deadline would be an assertion about the machine's load.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
