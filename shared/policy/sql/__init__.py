"""Decisions about tables: names, types, slices, bounds, differences. No SQL text: that is the dialects' own."""
