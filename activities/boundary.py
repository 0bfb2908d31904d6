"""The one place where an exception becomes an outcome, because types do not survive the activity boundary."""

from collections.abc import Awaitable, Callable
from typing import Any

from shared.errors import MigrationError, TransientError
from shared.model.steps import Envelope
from shared.services import Services

Body = Callable[[Services, Any], Awaitable[Any]]


def bound(body: Body, services: Services) -> Callable[[Any], Awaitable[Envelope]]:
    """The function that is registered for an activity's plain body.

    A MigrationError comes back as data; anything else is a bug and propagates, so that it fails loudly.
    """

    async def run(request: Any) -> Envelope:
        try:
            return {"ok": await body(services, request)}
        except TransientError as error:
            return {"transient": {"code": error.code, "detail": error.detail, "retry_after_s": error.retry_after_s}}
        except MigrationError as error:
            return {"abort": {"code": error.code, "detail": error.detail}}

    # By hand: functools.wraps would show the host the body's signature in place of this one.
    run.__name__ = run.__qualname__ = body.__module__.rpartition(".")[2]
    run.__doc__ = body.__doc__
    return run
