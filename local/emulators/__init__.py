"""Stand-ins for the clouds, strict ones: they refuse what the real service refuses.

``python -m local.emulators --root DIR`` starts OneLake (DFS and Blob dialects), the Fabric REST calls that turn
names into GUIDs, the drives of Microsoft Graph, and an Entra-like token issuer, on loopback only.
``launch.launch(root)`` does the same from a program. Every module's docstring names the source of the behaviour it
stands for.
"""
