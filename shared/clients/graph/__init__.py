"""SharePoint libraries through Microsoft Graph: the change feed, and downloads that are checked."""

from shared.clients.graph.drive import Drive, DrivePlace
from shared.clients.graph.service import Graph

__all__ = ["Drive", "DrivePlace", "Graph"]
