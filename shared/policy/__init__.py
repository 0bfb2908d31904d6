"""Pure decisions: no I/O, no clock, no randomness; the standard library only."""
