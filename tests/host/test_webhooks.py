"""The management API: status codes, query options, and every method of the SDK's client against it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest
import requests

from local.host import launch
from tests.host.conftest import APPS, Client, until


def test_status_codes_and_headers(durable: Client) -> None:
    assert durable.call("GET", "instances/nobody").status_code == 404
    durable.start("eternal", "alive")
    answer = durable.call("GET", "instances/alive?showInput=false")
    assert answer.status_code == 202
    assert answer.headers["Location"] == durable.webhook("instances/alive?showInput=false")
    assert answer.headers["Retry-After"] == "5"
    durable.run("plain", {"a": 1}, "ended")
    answer = durable.call("GET", "instances/ended")
    assert answer.status_code == 200
    assert "Location" not in answer.headers
    status = answer.json()
    assert status["input"] == '{"a": 1}'
    assert status["output"] == {"a": 1}
    assert status["createdTime"].endswith("Z")
    assert len(status["createdTime"]) == len("2026-01-01T00:00:00Z")
    assert "historyEvents" not in status


def test_a_failed_instance_is_500_only_on_request(durable: Client) -> None:
    durable.wait(durable.start("failing", "broken"))
    assert durable.call("GET", "instances/broken").status_code == 200
    assert durable.call("GET", "instances/broken?returnInternalServerErrorOnFailure=true").status_code == 500


def test_history_options(durable: Client) -> None:
    durable.run("chain", 4, "told")
    events = durable.status("told", "?showHistory=true")["historyEvents"]
    assert [event["EventType"] for event in events] == [
        "ExecutionStarted",
        "TaskCompleted",
        "TaskCompleted",
        "ExecutionCompleted",
    ]
    assert [event.get("FunctionName") for event in events] == ["chain", "echo", "double", None]
    assert "ScheduledTime" in events[1]
    assert not any("Result" in event for event in events)
    events = durable.status("told", "?showHistory=true&showHistoryOutput=true")["historyEvents"]
    assert [event.get("Result") for event in events] == [None, 4, {"value": 8}, [4, 8, "told"]]
    assert durable.status("told", "?showInput=false")["input"] is None


def test_start_by_webhook(durable: Client) -> None:
    answer = durable.call("POST", "orchestrators/plain/hooked", json={"x": [1]})
    assert answer.status_code == 202
    payload = answer.json()
    assert set(payload) == {
        "id",
        "statusQueryGetUri",
        "sendEventPostUri",
        "terminatePostUri",
        "rewindPostUri",
        "purgeHistoryDeleteUri",
        "restartPostUri",
        "suspendPostUri",
        "resumePostUri",
    }
    assert answer.headers["Location"] == payload["statusQueryGetUri"]
    assert durable.output("hooked") == {"x": [1]}
    assert requests.get(payload["statusQueryGetUri"], timeout=10).status_code == 200
    assert durable.call("POST", "orchestrators/plain").json()["id"]


def test_start_and_wait_by_webhook(durable: Client) -> None:
    answer = durable.call("POST", "orchestrators/plain?timeout=20&pollingInterval=1", json={"q": 1})
    assert (answer.status_code, answer.json()) == (200, {"q": 1})
    answer = durable.call("POST", "orchestrators/eternal?timeout=0&pollingInterval=1")
    assert answer.status_code == 202


def test_a_live_id_is_refused_and_an_ended_one_replaced(durable: Client) -> None:
    durable.start("eternal", "busy")
    answer = durable.call("POST", "orchestrators/eternal/busy")
    assert answer.status_code == 409
    assert "Running already exists" in answer.json()["Message"]
    durable.run("plain", 1, "reused")
    assert durable.run("plain", 2, "reused") == 2


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("orchestrators/nothing", None, "The function 'nothing' doesn't exist, is disabled, or is not an orchestrator"),
        ("orchestrators/plain/%40entity", None, "starts with '@'"),
        ("orchestrators/plain/a%2Fb", None, "control character"),
        ("orchestrators/plain/" + "x" * 101, None, "101"),
        ("orchestrators/plain", "{not json", "Invalid JSON"),
    ],
)
def test_a_bad_start_is_400(durable: Client, path: str, body: str | None, words: str) -> None:
    answer = durable.call("POST", path, data=body)
    assert answer.status_code == 400
    assert words in answer.json()["ExceptionMessage"]


def test_unknown_instances_operations_and_methods(durable: Client) -> None:
    for operation in ("terminate", "suspend", "resume", "rewind", "restart"):
        assert durable.call("POST", f"instances/nobody/{operation}").status_code == 404
    assert durable.raise_event("nobody", "e").status_code == 404
    assert durable.call("DELETE", "instances/nobody").status_code == 404
    durable.start("eternal", "someone")
    assert durable.call("POST", "instances/someone/juggle").status_code == 404
    assert durable.call("PUT", "instances/someone").status_code == 404
    assert durable.call("POST", "instances/someone/rewind").status_code == 400
    text = durable.call("POST", "instances/someone/raiseEvent/e", data="x", headers={"Content-Type": "text/plain"})
    assert text.status_code == 400
    assert durable.call("GET", "entities/counter/one").status_code == 501


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A host of its own, so that the number of instances is known: l-00..l-11 completed, one failed, one running."""
    directory = tmp_path_factory.mktemp("listed")
    with launch(APPS / "durable", directory / "state", {"TRACES": str(directory)}) as host:
        client = Client(host, directory)
        for n in range(12):
            client.start("plain", f"l-{n:02}", n)
        client.start("failing", "f-0")
        client.start("eternal", "e-0")
        for instance_id in [*(f"l-{n:02}" for n in range(12)), "f-0"]:
            client.wait(instance_id)
        until(lambda: client.status("e-0")["runtimeStatus"] == "Running", "the running one")
        yield client


def ids(answer: requests.Response) -> list[str]:
    return [item["instanceId"] for item in answer.json()]


def test_lists_are_paged(listed: Client) -> None:
    found: list[str] = []
    token = ""
    pages = 0
    while True:
        answer = listed.call("GET", "instances?top=5", headers={"x-ms-continuation-token": token} if token else {})
        found += ids(answer)
        pages += 1
        token = answer.headers["x-ms-continuation-token"]
        if not token:
            break
    assert pages == 3
    assert sorted(found) == sorted([*(f"l-{n:02}" for n in range(12)), "f-0", "e-0"])
    answer = listed.call("GET", "instances", headers={"x-ms-continuation-token": "nonsense"})
    assert answer.status_code == 400


def test_lists_are_filtered(listed: Client) -> None:
    assert ids(listed.call("GET", "instances?runtimeStatus=Failed")) == ["f-0"]
    assert set(ids(listed.call("GET", "instances?runtimeStatus=Failed,Running"))) == {"f-0", "e-0"}
    assert set(ids(listed.call("GET", "instances?runtimeStatus=Failed&runtimeStatus=Running"))) == {"f-0", "e-0"}
    assert len(ids(listed.call("GET", "instances/?instanceIdPrefix=l-0"))) == 10
    assert ids(listed.call("GET", "instances?createdTimeFrom=2999-01-01T00:00:00Z")) == []
    assert ids(listed.call("GET", "instances?createdTimeTo=2001-01-01T00:00:00Z")) == []
    assert listed.call("GET", "instances?showInput=false&top=1").json()[0]["input"] is None


def test_the_client_lists(listed: Client) -> None:
    assert len(listed.client("all").json()) == 14
    assert [item["instanceId"] for item in listed.client("by", runtime_status=["Failed"]).json()] == ["f-0"]
    assert len(listed.client("by", prefix="l-").json()) == 12


def test_purge(listed: Client) -> None:
    assert listed.call("DELETE", "instances/e-0").json() == {"instancesDeleted": 0}
    assert listed.call("DELETE", "instances/l-00").json() == {"instancesDeleted": 1}
    assert listed.call("GET", "instances/l-00").status_code == 404
    assert listed.client("purge_instance_history", instance_id="l-01").json() == 1
    assert listed.client("purge_instance_history", instance_id="l-01").json() == 0
    assert listed.call("DELETE", "instances").status_code == 400
    by = {"created_time_from": "2001-01-01T00:00:00+00:00", "runtime_status": ["Failed"]}
    assert listed.client("purge_instance_history_by", **by).json() == 1
    assert listed.client("purge_instance_history_by", **by).json() == 0
    query = "createdTimeFrom=2001-01-01T00:00:00Z"
    assert listed.call("DELETE", f"instances?{query}&createdTimeTo=2002-01-01T00:00:00Z").status_code == 404
    assert listed.call("DELETE", f"instances?{query}").json() == {"instancesDeleted": 10}
    assert ids(listed.call("GET", "instances")) == ["e-0"]


def test_the_client_starts_and_reads(durable: Client) -> None:
    instance_id = uuid.uuid4().hex
    assert durable.client("start_new", orchestration_function_name="plain", instance_id=instance_id).status_code == 200
    durable.wait(instance_id)
    status = durable.client("get_status", instance_id=instance_id).json()
    assert (status["exists"], status["runtimeStatus"]) == (True, "Completed")
    assert durable.client("get_status", instance_id="nobody").json()["exists"] is False
    answer = durable.client("start_new", orchestration_function_name="nothing")
    assert answer.status_code == 400
    assert "doesn't exist" in answer.text
    durable.start("eternal", "taken")
    answer = durable.client("start_new", orchestration_function_name="plain", instance_id="taken")
    assert "already exists" in answer.text


def test_the_client_waits(durable: Client) -> None:
    durable.start("plain", "awaited", [1, 2])
    limits = {"timeout_in_milliseconds": 20_000, "retry_interval_in_milliseconds": 20}
    answer = durable.client("wait", instance_id="awaited", **limits)
    assert (answer.status_code, answer.json()) == (200, [1, 2])
    durable.start("eternal", "not-yet")
    answer = durable.client(
        "wait", instance_id="not-yet", timeout_in_milliseconds=20, retry_interval_in_milliseconds=10
    )
    assert answer.status_code == 202
    assert json.loads(answer.text)["id"] == "not-yet"


def test_the_client_raises_events(durable: Client) -> None:
    durable.start("with_timeout", "evented", 3_600_000)
    given = {"event_name": "go", "event_data": {"n": 1}}
    assert durable.client("raise_event", instance_id="evented", **given).status_code == 200
    assert durable.output("evented") == '{"n": 1}'
    assert "No instance" in durable.client("raise_event", instance_id="nobody", **given).text
    assert "No instance" in durable.client("terminate", instance_id="nobody", reason="r").text
    assert "501" in durable.client("signal").text
