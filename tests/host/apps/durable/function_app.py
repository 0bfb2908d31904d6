"""Sample app: one orchestrator for each feature of the durable half, and activities that leave traces in files."""

import asyncio
import json
import logging
import os
import time
from datetime import timedelta
from pathlib import Path

import azure.durable_functions as df
import azure.functions as func

app = df.DFApp(http_auth_level=func.AuthLevel.ANONYMOUS)
TRACES = Path(os.environ["TRACES"])


def trace(name: str, text: str) -> None:
    with (TRACES / name).open("a") as file:
        file.write(text + "\n")


@app.route(route="start/{name}/{id?}", methods=["POST"])
@app.durable_client_input(client_name="client")
async def start(req: func.HttpRequest, client: df.DurableOrchestrationClient) -> func.HttpResponse:
    body = req.get_body()
    instance_id = await client.start_new(
        req.route_params["name"], req.route_params.get("id"), json.loads(body) if body else None
    )
    return client.create_check_status_response(req, instance_id)


@app.activity_trigger(input_name="request")
def echo(request):
    return request


@app.activity_trigger(input_name="request")
async def double(request: dict) -> dict:
    await asyncio.sleep(0)
    return {"value": request["value"] * 2}


@app.orchestration_trigger(context_name="context")
def chain(context: df.DurableOrchestrationContext):
    first = yield context.call_activity("echo", context.get_input())
    second = yield context.call_activity("double", {"value": first})
    return [first, second["value"], context.instance_id]
