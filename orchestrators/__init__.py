"""Deterministic workflows, one a module; each opens with its protocol as numbered steps."""
