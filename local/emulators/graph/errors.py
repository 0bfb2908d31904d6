"""What Graph refuses with: a status, a code, and perhaps a more exact code inside.

Shape and codes: Microsoft's concepts/errors.md and OneDrive's "Error responses". Clients branch on codes, never on
messages.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class GraphError(Exception):
    """A refusal, on its way to the client.

    Args:
        inner: the code inside ``innerError``, if there is one.
    """

    def __init__(
        self, status: int, code: str, message: str, *, inner: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(code)
        self.status, self.code, self.message, self.inner = status, code, message, inner
        self.headers = dict(headers or {})

    def document(self, request_id: str, client_request_id: str) -> dict[str, Any]:
        """Returns the body of the answer."""
        inner = {"code": self.inner} if self.inner else {}
        inner |= {
            "date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
            "request-id": request_id,
            "client-request-id": client_request_id,
        }
        return {"error": {"code": self.code, "message": self.message, "innerError": inner}}


def not_found() -> GraphError:
    """The answer for what is not there, and for what was deleted."""
    return GraphError(404, "itemNotFound", "The resource could not be found.")


def invalid(message: str) -> GraphError:
    """The answer for a request that makes no sense here."""
    return GraphError(400, "invalidRequest", message)


def unauthenticated(message: str) -> GraphError:
    """The answer for a token that is missing or does not hold."""
    challenge = (
        'Bearer realm="", authorization_uri="https://login.microsoftonline.com/common/oauth2/authorize", '
        'client_id="00000003-0000-0000-c000-000000000000"'
    )
    return GraphError(401, "InvalidAuthenticationToken", message, headers={"WWW-Authenticate": challenge})


def throttled(headers: Mapping[str, str]) -> GraphError:
    """The answer for one request too many."""
    return GraphError(
        429, "activityLimitReached", "The request has been throttled.", inner="throttledRequest", headers=headers
    )
