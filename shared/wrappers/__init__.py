"""Cross-cutting effects, composed around a port: the same Protocol in and out."""
