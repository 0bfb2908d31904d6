"""Azure Blob Storage as a source: listing and reading on the bare protocol, one account a client."""

from shared.clients.blob.account import BlobAccount, open_account
from shared.clients.blob.container import BlobContainer, OpenBlob

__all__ = ["BlobAccount", "BlobContainer", "OpenBlob", "open_account"]
