"""SharePoint document libraries as Microsoft Graph v1.0 shows them, read only.

docs/protocols/graph.md has the facts and says of each where it comes from. The libraries are generated from seeds and
changed through the switchboard; no byte of a generated file is kept.
"""
