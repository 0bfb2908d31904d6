"""Use cases over ports: what a step does, whatever the system behind it."""
