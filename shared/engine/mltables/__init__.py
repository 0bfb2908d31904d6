"""The use cases of an MLTable migration, over ports: discover, plan, copy, check, register, validate, report."""
