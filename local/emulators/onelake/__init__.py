"""OneLake: the DFS dialect (ADLS Gen2) and as much of the Blob dialect as the SDKs use.

What is recorded, documented or only inferred about the service is on the page docs/protocols/onelake.md; where it is
silent the modules say which answer was chosen.
"""
