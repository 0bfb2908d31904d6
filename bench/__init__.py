"""Benchmarks, each with its peers in the same run. Not deployed and no part of the test command."""
