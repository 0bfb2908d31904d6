"""Tables of a database into the lake: plan, extract, check, commit."""
