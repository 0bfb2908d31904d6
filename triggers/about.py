"""``/api/health`` and ``/api/openapi.json``: what the app says of itself."""

import asyncio
from typing import Any

import azure.functions as func
from azure.durable_functions import DurableOrchestrationClient

from shared import VERSION
from shared.errors import MigrationError
from shared.services import Services
from triggers.answers import answer
from triggers.openapi import document

_PROBE_S = 5.0


async def health(services: Services, client: DurableOrchestrationClient, req: func.HttpRequest) -> func.HttpResponse:
    """Readiness of each dependency: 200 if all are ready, else 503 with what is wrong."""

    async def store() -> None:
        await services.store.get("health")

    async def durable() -> None:
        await client.get_status("health-probe")

    async def tokens() -> None:
        await services.tokens("onelake", services.settings.onelake_scope).get()

    checks = {"run_store": store, "durable": durable, "onelake_token": tokens}
    found: dict[str, Any] = {}
    for name, check in checks.items():
        try:
            async with asyncio.timeout(_PROBE_S):
                await check()
            found[name] = {"ready": True}
        except MigrationError as error:
            found[name] = {"ready": False, "message": error.detail}
        except TimeoutError:
            found[name] = {"ready": False, "message": f"no answer within {_PROBE_S:.0f} s"}
        except Exception as error:  # noqa: BLE001 - a health page must answer whatever is broken
            found[name] = {"ready": False, "message": type(error).__name__}
    ready = all(one["ready"] for one in found.values())
    return answer({"ready": ready, "version": VERSION, "checks": found}, 200 if ready else 503)


async def openapi(services: Services, client: DurableOrchestrationClient, req: func.HttpRequest) -> func.HttpResponse:
    """The API's description, OpenAPI 3.1."""
    return answer(document(req.url.partition("/openapi.json")[0]))
