"""HTTP answers: JSON documents, and errors that name the field, the value and the remedy."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import azure.functions as func
from azure.durable_functions import DurableOrchestrationClient

from shared.errors import JobBusy, MigrationError, StoreUnavailable
from shared.model.job import SpecError
from shared.services import Services

Body = Callable[[Services, DurableOrchestrationClient, func.HttpRequest], Awaitable[func.HttpResponse]]


class Refused(Exception):
    """A request that is answered with an error; ``details`` names fields."""

    def __init__(self, status: int, code: str, message: str, details: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details or []


def answer(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> func.HttpResponse:
    return func.HttpResponse(
        json.dumps(document, ensure_ascii=True), status_code=status, mimetype="application/json", headers=headers
    )


def error(status: int, code: str, message: str, details: list[dict[str, str]] | None = None) -> func.HttpResponse:
    return answer({"error": {"code": code, "message": message, "details": details or []}}, status)


def bound(body: Body, services: Services) -> Callable[..., Awaitable[func.HttpResponse]]:
    """The function that is registered for a trigger's plain body; the one place where errors become answers."""

    async def run(req: func.HttpRequest, client: str) -> func.HttpResponse:
        try:
            return await body(services, client, req)
        except SpecError as refused:
            return error(400, refused.code, refused.message, refused.details)
        except Refused as refused:
            return error(refused.status, refused.code, refused.message, refused.details)
        except JobBusy as busy:
            return error(409, "job_busy", f"a run of this job is alive: {busy.run}; wait for it, or cancel it")
        except StoreUnavailable as failed:
            return error(503, failed.code, failed.detail)
        except MigrationError as failed:
            return error(500, failed.code, failed.detail)

    # By hand: functools.wraps would show the host the body's signature in place of this one.
    run.__name__ = run.__qualname__ = body.__name__
    run.__doc__ = body.__doc__
    return run


def page_size(req: func.HttpRequest, default: int, most: int) -> int:
    """The ``top`` parameter."""
    text = req.params.get("top", str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 9) or not 1 <= int(text) <= most:
        raise Refused(
            400, "invalid_parameter", f"top: write a number from 1 to {most}",
            [{"path": "top", "message": f"a number from 1 to {most} (got {text[:20]!r})"}],
        )  # fmt: skip
    return int(text)


def choice(req: func.HttpRequest, name: str, choices: tuple[str, ...]) -> str | None:
    """A parameter with a fixed set of values, or None if it is absent."""
    text: str | None = req.params.get(name)
    if not text:
        return None
    if text not in choices:
        message = f"one of {', '.join(choices)} (got {text[:40]!r})"
        raise Refused(400, "invalid_parameter", f"{name}: {message}", [{"path": name, "message": message}])
    return text
