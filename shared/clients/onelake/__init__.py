"""OneLake over its DFS endpoint: uploads on the bare protocol, the rest through Microsoft's SDK."""

from shared.clients.onelake.folder import LakeFolder
from shared.clients.onelake.service import OneLake

__all__ = ["LakeFolder", "OneLake"]
