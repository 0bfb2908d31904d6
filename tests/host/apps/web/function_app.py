"""Sample app: HTTP triggers."""

import asyncio
import hashlib
import json
import os
import threading
import time
from pathlib import Path

import azure.functions as func

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)
bp = func.Blueprint()
TRACES = Path(os.environ["TRACES"])


def answer(req: func.HttpRequest, **more: object) -> func.HttpResponse:
    seen = {
        "method": req.method,
        "url": req.url,
        "params": dict(req.params),
        "route": dict(req.route_params),
        "headers": dict(req.headers),
        "size": len(req.get_body()),
        "sha": hashlib.sha256(req.get_body()).hexdigest(),
    }
    return func.HttpResponse(json.dumps(seen | more), mimetype="application/json")


@app.route(route="seen/{id:int}/{name?}")
def seen(req: func.HttpRequest) -> func.HttpResponse:
    return answer(req, function="seen", thread=threading.current_thread().name)


@app.route(route="seen/special", methods=["GET"])
async def special(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
    return answer(
        req,
        function=context.function_name,
        invocation=context.invocation_id,
        directory=context.function_directory,
        thread=threading.current_thread().name,
    )


@app.route(route="files/{*rest}", methods=["GET", "PUT"])
def files(req: func.HttpRequest) -> func.HttpResponse:
    return answer(req, function="files")


@app.route(methods=["POST"])
def no_route(req: func.HttpRequest) -> str:
    return "just text"


@app.route(route="json", methods=["POST"])
def parses(req: func.HttpRequest) -> func.HttpResponse:
    try:
        return func.HttpResponse(json.dumps(req.get_json()))
    except ValueError:
        return func.HttpResponse("not JSON", status_code=400)


@app.route(route="form", methods=["POST"])
def form(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse(
        json.dumps({"form": dict(req.form), "files": {k: len(v.read()) for k, v in req.files.items()}})
    )


@app.route(route="head", methods=["GET", "HEAD"])
def head(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse(
        b"12345", headers={"X-Mine": "yes", "Content-Length": "999"}, mimetype="application/x-mine"
    )


@app.route(route="cookies")
def cookies(req: func.HttpRequest) -> func.HttpResponse:
    response = func.HttpResponse(status_code=204)
    response.headers.add("Set-Cookie", "a=1; Path=/")
    response.headers.add("Set-Cookie", "b=2; HttpOnly")
    return response


@app.route(route="large/{mib:int}")
def large(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse(
        b"\x00\xff" * (int(req.route_params["mib"]) * 512 * 1024), mimetype="application/octet-stream"
    )


@app.route(route="memory")
def memory(req: func.HttpRequest) -> func.HttpResponse:
    peak_kib = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return func.HttpResponse(peak_kib.split()[1])


@app.route(route="raises")
def raises(req: func.HttpRequest) -> func.HttpResponse:
    raise ValueError("on purpose")


@app.route(route="nothing")
def nothing(req: func.HttpRequest) -> func.HttpResponse:
    return None


@app.route(route="settings")
def settings(req: func.HttpRequest) -> func.HttpResponse:
    names = ("FROM_FILE", "IN_BOTH", "A_NUMBER", "A_FLAG", "URL", "AZURE_FUNCTIONS_ENVIRONMENT")
    return func.HttpResponse(json.dumps({name: os.environ.get(name) for name in names}))


@bp.route(route="slow/{key}/{seconds}", methods=["POST"])
def slow(req: func.HttpRequest) -> func.HttpResponse:
    key = req.route_params["key"]
    (TRACES / f"began-{key}").touch()
    time.sleep(float(req.route_params["seconds"]))
    (TRACES / f"ended-{key}").touch()
    return func.HttpResponse("done")


@bp.route(route="slow_async/{key}/{seconds}", methods=["POST"])
async def slow_async(req: func.HttpRequest) -> func.HttpResponse:
    key = req.route_params["key"]
    (TRACES / f"began-{key}").touch()
    await asyncio.sleep(float(req.route_params["seconds"]))
    (TRACES / f"ended-{key}").touch()
    return func.HttpResponse("done")


app.register_functions(bp)
