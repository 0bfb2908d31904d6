"""The two kinds of refusal: Azure Resource Manager's own, and those of Azure ML behind it.

Codes and texts as reported from live tenants (docs/protocols/azureml.md, section 8); what is inferred is marked
there. Azure ML adds ``details`` and ``additionalInfo``, which azure-core prints below the message.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from local.emulators.wire import Response

IMMUTABLE = (
    "A data version with this name and version already exists. If you are trying to create a new data version, use a "
    "different name or version. If you are trying to update an existing data version, the existing asset's data uri "
    "cannot be changed. Only tags, description, and isArchived can be updated."
)


class Refusal(Exception):
    """An answer that is an error.

    Args:
        from_service: Azure ML says it, not Resource Manager in front of it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        from_service: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message
        self.from_service = from_service
        self.headers = headers or {}


def user_error(status: int, message: str) -> Refusal:
    """What Azure ML says of nearly every mistake of a caller: the code is UserError, whatever the status."""
    return Refusal(status, "UserError", message, from_service=True)


def json_response(status: int, document: Any) -> Response:
    """Returns a JSON answer with the headers that Resource Manager sets."""
    request_id = str(uuid.uuid4())
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "x-ms-request-id": request_id,
        "x-ms-correlation-request-id": request_id,
    }
    return Response(status, headers, json.dumps(document).encode())


def error_response(refusal: Refusal, location: str = "westeurope") -> Response:
    """Returns the error in the shape of whoever says it."""
    error: dict[str, Any] = {"code": refusal.code, "message": refusal.message}
    if refusal.from_service:
        correlation = {"operation": uuid.uuid4().hex, "request": uuid.uuid4().hex[:16]}
        error["target"] = None
        error["details"] = []
        error["additionalInfo"] = [
            {"type": "ComponentName", "info": {"value": "managementfrontend"}},
            {"type": "Correlation", "info": {"value": correlation}},
            {"type": "Environment", "info": {"value": location}},
            {"type": "Location", "info": {"value": location}},
            {"type": "Time", "info": {"value": time.strftime("%Y-%m-%dT%H:%M:%S.0000000+00:00", time.gmtime())}},
        ]
    response = json_response(refusal.status, {"error": error})
    response.headers |= refusal.headers
    response.error_code = refusal.code
    return response
