"""Command lines for operators. Not deployed."""
