"""Sample app: one orchestrator for each feature of the durable half, and activities that leave traces in files."""

# The SDK raises a failed task as a bare Exception: there is nothing narrower to catch.
# ruff: noqa: BLE001

import asyncio
import json
import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import azure.durable_functions as df
import azure.functions as func

app = df.DFApp(http_auth_level=func.AuthLevel.ANONYMOUS)
bp = df.Blueprint()
TRACES = Path(os.environ["TRACES"])
STATUS = df.OrchestrationRuntimeStatus


def trace(name: str, text: str = "x") -> None:
    """One line for each call, written at once: lines of concurrent calls do not mix."""
    with (TRACES / name).open("a") as file:
        file.write(text + "\n")


def has_flag(name: str) -> bool:
    return (TRACES / name).exists()


# Clients


@app.route(route="start/{name}/{id?}", methods=["POST"])
@app.durable_client_input(client_name="client")
async def start(req: func.HttpRequest, client: df.DurableOrchestrationClient) -> func.HttpResponse:
    body = req.get_body()
    try:
        instance_id = await client.start_new(
            req.route_params["name"], req.route_params.get("id"), json.loads(body) if body else None
        )
    except Exception as error:
        return func.HttpResponse(str(error), status_code=400)
    return client.create_check_status_response(req, instance_id)


def described(status) -> dict:
    return status.to_json() | {"exists": True} if status else {"exists": False}


@app.route(route="client/{operation}", methods=["POST"])
@app.durable_client_input(client_name="client")
async def use_client(req: func.HttpRequest, client: df.DurableOrchestrationClient) -> func.HttpResponse:
    """Call one method of the client with the arguments in the body, and answer with what it returned."""
    given = json.loads(req.get_body() or b"{}")
    operation = req.route_params["operation"]
    try:
        if operation == "by":
            statuses = given.get("runtime_status")
            found = await client.get_status_by(
                runtime_status=[STATUS(text) for text in statuses] if statuses else None,
                instance_id_prefix=given.get("prefix"),
            )
            result = [described(status) for status in found]
        elif operation == "all":
            result = [described(status) for status in await client.get_status_all()]
        elif operation == "get_status":
            result = described(await client.get_status(**given))
        elif operation == "wait":
            return await client.wait_for_completion_or_create_check_status_response(req, **given)
        elif operation in {"purge_instance_history", "purge_instance_history_by"}:
            if "created_time_from" in given:
                from datetime import datetime

                given["created_time_from"] = datetime.fromisoformat(given["created_time_from"])
                given["runtime_status"] = [STATUS(text) for text in given["runtime_status"]]
            result = (await getattr(client, operation)(**given)).instances_deleted
        elif operation == "signal":
            await client.signal_entity(df.EntityId("counter", "one"), "add", 1)
            result = None
        else:
            result = await getattr(client, operation)(**given)
    except Exception as error:
        return func.HttpResponse(str(error), status_code=400)
    return func.HttpResponse(json.dumps(result), mimetype="application/json")


# Activities


@bp.activity_trigger(input_name="request")
def echo(request):
    return request


@bp.activity_trigger(input_name="request")
async def double(request: dict) -> dict:
    await asyncio.sleep(0)
    return {"value": request["value"] * 2}


@bp.activity_trigger(input_name="request")
def where(request) -> str:
    return threading.current_thread().name


@bp.activity_trigger(input_name="request")
async def where_async(request) -> str:
    return threading.current_thread().name


@bp.activity_trigger(input_name="request")
def traced(request: dict) -> dict:
    trace(f"began-{request['key']}")
    time.sleep(request.get("sleep_s", 0))
    trace(f"ended-{request['key']}")
    return {"key": request["key"]}


@bp.activity_trigger(input_name="request")
async def traced_async(request: dict) -> dict:
    trace(f"began-{request['key']}")
    await asyncio.sleep(request.get("sleep_s", 0))
    trace(f"ended-{request['key']}")
    return {"key": request["key"]}


@bp.activity_trigger(input_name="request")
def flaky(request: dict) -> str:
    """Fails as often as asked, counted over all processes."""
    file = TRACES / f"flaky-{request['key']}"
    trace(file.name)
    attempt = len(file.read_text().splitlines())
    if attempt <= request["failures"]:
        raise ValueError(f"attempt {attempt} of {request['key']}")
    return f"{request['key']} after {attempt}"


@bp.activity_trigger(input_name="request")
async def misbehave(request: str) -> object:
    if request == "exit":
        sys.exit(3)
    if request == "cancel":
        raise asyncio.CancelledError
    if request == "surrogate":
        raise ValueError("no such file: caf\udce9.txt")
    return object()


@bp.activity_trigger(input_name="request")
def exit_in_thread(request: str) -> None:
    sys.exit(4)


@bp.activity_trigger(input_name="request")
def fail_unless(request: dict) -> str:
    trace(f"tried-{request['flag']}")
    if not has_flag(request["flag"]):
        raise RuntimeError(f"no {request['flag']}")
    return "now it works"


@bp.activity_trigger(input_name="request")
async def count_running(request: dict) -> int:
    global _running
    _running += 1
    highest = _running
    for _ in range(20):
        await asyncio.sleep(0.002)
        highest = max(highest, _running)
    _running -= 1
    return highest


_running = 0


@bp.activity_trigger(input_name="request")
@bp.durable_client_input(client_name="client")
async def tell(request: dict, client: df.DurableOrchestrationClient) -> None:
    await client.raise_event(request["instance_id"], request["event"], request["data"])


# Orchestrators


@app.orchestration_trigger(context_name="context")
def chain(context: df.DurableOrchestrationContext):
    first = yield context.call_activity("echo", context.get_input())
    second = yield context.call_activity("double", {"value": first})
    return [first, second["value"], context.instance_id]


@app.orchestration_trigger(context_name="context")
def plain(context: df.DurableOrchestrationContext):
    return context.get_input()


@app.orchestration_trigger(context_name="context")
def threads(context: df.DurableOrchestrationContext):
    return (yield context.task_all([context.call_activity("where", 1), context.call_activity("where_async", 1)]))


@app.orchestration_trigger(context_name="context")
def fan_out(context: df.DurableOrchestrationContext):
    count = context.get_input()
    results = yield context.task_all([context.call_activity("double", {"value": n}) for n in range(count)])
    return sum(result["value"] for result in results)


@app.orchestration_trigger(context_name="context")
def capped(context: df.DurableOrchestrationContext):
    return max((yield context.task_all([context.call_activity("count_running", {}) for _ in range(30)])))


@app.orchestration_trigger(context_name="context")
def big(context: df.DurableOrchestrationContext):
    text = yield context.call_activity("echo", "é" * context.get_input())
    again = yield context.call_activity("echo", text)
    return len(again)


@app.orchestration_trigger(context_name="context")
def retried(context: df.DurableOrchestrationContext):
    given = context.get_input()
    options = df.RetryOptions(10, given["attempts"])
    try:
        return (yield context.call_activity_with_retry("flaky", options, given))
    except Exception as error:
        return f"gave up: {error}"


@app.orchestration_trigger(context_name="context")
def window(context: df.DurableOrchestrationContext):
    """A sliding window over retrying activities, some of which fail for good."""
    keys = [f"{context.instance_id}-{n}" for n in range(context.get_input())]
    options = df.RetryOptions(5, 3)
    waiting = list(enumerate(keys))
    running, done, failed = {}, [], []
    while waiting or running:
        while waiting and len(running) < 5:
            n, key = waiting.pop(0)
            running[context.call_activity_with_retry("flaky", options, {"key": key, "failures": n % 4})] = key
        task = yield context.task_any(list(running))
        key = running.pop(task)
        (failed if isinstance(task.result, Exception) else done).append(key)
        context.set_custom_status({"done": len(done), "failed": len(failed)})
    return {"done": sorted(done), "failed": sorted(failed)}


@app.orchestration_trigger(context_name="context")
def parent(context: df.DurableOrchestrationContext):
    named = context.call_sub_orchestrator("chain", 1, instance_id=f"{context.instance_id}-named")
    unnamed = context.call_sub_orchestrator("chain", 2)
    return (yield context.task_all([named, unnamed]))


@app.orchestration_trigger(context_name="context")
def parent_of_failing(context: df.DurableOrchestrationContext):
    try:
        yield context.call_sub_orchestrator("failing", context.get_input())
    except Exception as error:
        return f"caught: {error}"


@app.orchestration_trigger(context_name="context")
def parent_retrying(context: df.DurableOrchestrationContext):
    options = df.RetryOptions(10, 3)
    child = f"{context.instance_id}-child"
    return (yield context.call_sub_orchestrator_with_retry("fails_twice", options, context.get_input(), child))


@app.orchestration_trigger(context_name="context")
def fails_twice(context: df.DurableOrchestrationContext):
    return (yield context.call_activity("flaky", context.get_input()))


@app.orchestration_trigger(context_name="context")
def parent_of_fixed(context: df.DurableOrchestrationContext):
    try:
        return (yield context.call_sub_orchestrator("plain", "again", instance_id=context.get_input()))
    except Exception as error:
        return f"refused: {error}"


@app.orchestration_trigger(context_name="context")
def failing(context: df.DurableOrchestrationContext):
    yield context.call_activity("echo", 1)
    raise ValueError(f"on purpose: {context.get_input()}")


@app.orchestration_trigger(context_name="context")
def misbehaviours(context: df.DurableOrchestrationContext):
    seen = []
    for name, given in [
        ("misbehave", "exit"),
        ("misbehave", "cancel"),
        ("misbehave", "surrogate"),
        ("misbehave", "object"),
        ("exit_in_thread", ""),
    ]:
        try:
            seen.append((yield context.call_activity(name, given)))
        except Exception as error:
            seen.append(str(error).splitlines()[0].strip())
    return seen


@app.orchestration_trigger(context_name="context")
def sleeper(context: df.DurableOrchestrationContext):
    began = context.current_utc_datetime
    yield context.create_timer(began + timedelta(milliseconds=context.get_input()))
    return (context.current_utc_datetime - began).total_seconds()


@app.orchestration_trigger(context_name="context")
def with_timeout(context: df.DurableOrchestrationContext):
    timeout = context.create_timer(context.current_utc_datetime + timedelta(milliseconds=context.get_input()))
    event = context.wait_for_external_event("go")
    winner = yield context.task_any([event, timeout])
    if winner == event:
        timeout.cancel()
        yield context.call_activity("echo", 1)
        return event.result
    return "timed out"


@app.orchestration_trigger(context_name="context")
def collect(context: df.DurableOrchestrationContext):
    """Takes as many events as asked, after an activity, so that early ones have to be kept."""
    yield context.call_activity("traced", {"key": context.instance_id, "sleep_s": 0.2})
    got = []
    for _ in range(context.get_input()):
        got.append((yield context.wait_for_external_event("item")))
    return got


@app.orchestration_trigger(context_name="context")
def told(context: df.DurableOrchestrationContext):
    yield context.call_activity(
        "tell", {"instance_id": context.instance_id, "event": "hello", "data": {"from": "activity"}}
    )
    return (yield context.wait_for_external_event("hello"))


@app.orchestration_trigger(context_name="context")
def generations(context: df.DurableOrchestrationContext):
    """Continues as new; takes one event in each generation that says so, and keeps what it got."""
    state = context.get_input()
    context.set_custom_status(state["n"])
    if state["n"] < state["until"]:
        if state.get("takes"):
            state["got"] = [*state.get("got", []), (yield context.wait_for_external_event("item"))]
        else:
            yield context.call_activity("echo", state["n"])
        state["n"] += 1
        context.continue_as_new(state)
        return None
    return state


@app.orchestration_trigger(context_name="context")
def eternal(context: df.DurableOrchestrationContext):
    yield context.wait_for_external_event("never")


@app.orchestration_trigger(context_name="context")
def parent_waiting_for(context: df.DurableOrchestrationContext):
    try:
        yield context.call_sub_orchestrator("eternal", None, instance_id=context.get_input())
    except Exception as error:
        return str(error)


@app.orchestration_trigger(context_name="context")
def paused_work(context: df.DurableOrchestrationContext):
    got = []
    for n in range(3):
        got.append((yield context.wait_for_external_event("step")))
        yield context.call_activity("traced", {"key": f"{context.instance_id}-{n}"})
    return got


@app.orchestration_trigger(context_name="context")
def rewindable(context: df.DurableOrchestrationContext):
    """Some activities and children succeed, others need a flag."""
    flag = context.get_input()
    name = context.instance_id
    first = yield context.wait_for_external_event("begin")
    tasks = [context.call_activity("traced", {"key": f"{name}-{n}"}) for n in range(4)]
    yield context.task_all(tasks)
    tasks = [context.call_sub_orchestrator("rewindable_child", {"flag": flag, "key": f"{name}-c{n}"}) for n in range(2)]
    tasks.append(context.call_activity("traced", {"key": f"{name}-late", "sleep_s": 0.2}))
    results = yield context.task_all(tasks)
    last = yield context.call_activity("fail_unless", {"flag": f"{flag}-last"})
    return [first, results, last]


@app.orchestration_trigger(context_name="context")
def rewindable_child(context: df.DurableOrchestrationContext):
    given = context.get_input()
    yield context.call_activity("traced", {"key": given["key"]})
    return (yield context.call_activity_with_retry("fail_unless", df.RetryOptions(5, 2), {"flag": given["flag"]}))


@app.orchestration_trigger(context_name="context")
def shows_and_fails(context: df.DurableOrchestrationContext):
    context.set_custom_status("before")
    yield context.call_activity("echo", 1)
    context.set_custom_status("last words")
    raise ValueError("on purpose")


@app.orchestration_trigger(context_name="context")
def status_size(context: df.DurableOrchestrationContext):
    context.set_custom_status("s" * context.get_input())
    yield context.call_activity("echo", 1)
    return "done"


@app.orchestration_trigger(context_name="context")
def calls_unknown(context: df.DurableOrchestrationContext):
    yield context.call_activity("no_such_activity", 1)


@app.orchestration_trigger(context_name="context")
def calls_entity(context: df.DurableOrchestrationContext):
    yield context.call_entity(df.EntityId("counter", "one"), "get")


@app.orchestration_trigger(context_name="context")
def identity(context: df.DurableOrchestrationContext):
    before = [context.new_uuid(), str(context.new_guid()), context.is_replaying]
    yield context.call_activity("echo", 1)
    trace(f"replays-{context.instance_id}", f"{context.is_replaying}")
    yield context.call_activity("echo", before)
    return before[:2]


@app.orchestration_trigger(context_name="context")
def tree(context: df.DurableOrchestrationContext):
    """Children with windows, retries and timers: what the kill tests run."""
    given = context.get_input()
    if given["depth"]:
        children = [
            context.call_sub_orchestrator(
                "tree", given | {"depth": given["depth"] - 1, "key": f"{given['key']}.{n}"}, f"{given['key']}.{n}"
            )
            for n in range(given["children"])
        ]
        return sum((yield context.task_all(children)))
    count = 0
    waiting = [f"{given['key']}.{n}" for n in range(given["leaves"])]
    running = []
    while waiting or running:
        while waiting and len(running) < 4:
            key = waiting.pop(0)
            name = "traced" if len(waiting) % 2 else "traced_async"
            request = {"key": key, "sleep_s": 0.01}
            if len(waiting) % 3:
                running.append(context.call_activity_with_retry(name, df.RetryOptions(10, 2), request))
            else:
                running.append(context.call_activity(name, request))
        done = yield context.task_any(running)
        running.remove(done)
        count += 1
    yield context.create_timer(context.current_utc_datetime + timedelta(milliseconds=30))
    return count


app.register_functions(bp)
