"""The steps of a run, one module a step: a plain body that takes a request and returns an outcome."""
