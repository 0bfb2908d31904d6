"""Azure ML's control plane in two tenants, and Azurite for the blobs behind it.

`service` answers ARM, `registry` keeps what was registered, `storage` stands in front of `azurite` and checks what
Azurite does not, `seeding` fills a workspace with assets. Facts and their sources: docs/protocols/azureml.md.
"""
