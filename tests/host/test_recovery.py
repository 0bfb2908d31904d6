"""What survives: kills at any moment, restarts, changed code, missed work."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.host.conftest import APPS, Client, until

StartHost = Callable[..., Client]


def completed_keys(state: Path) -> set[str]:
    """The activities whose result is in the file, as the next process will find it."""
    keys: set[str] = set()
    with sqlite3.connect(f"file:{state / 'host.db'}?mode=ro", uri=True) as db:
        rows = db.execute("SELECT event FROM history WHERE event_type = 5").fetchall()
        results = [json.loads(row[0])["Result"] for row in rows]
        results += [row[0] for row in db.execute("SELECT payload FROM inbox WHERE kind = 5")]
    db.close()
    for result in results:
        keys.add(json.loads(result)["key"])
    return keys


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kills_lose_nothing_and_repeat_nothing_that_was_recorded(start_host: StartHost, seed: int) -> None:
    rng = random.Random(seed)
    client = start_host()
    given = {"depth": 2, "children": 3, "leaves": 12, "key": f"k{seed}"}
    client.start("tree", f"k{seed}", given)
    recorded: dict[str, int] = {}
    for _ in range(5):
        time.sleep(rng.uniform(0.02, 0.35))
        client.host.kill()
        for key in completed_keys(client.traces / "state"):
            recorded.setdefault(key, client.lines(f"began-{key}"))
        client = start_host()
    assert client.output(f"k{seed}") == 9 * 12
    keys = [f"k{seed}.{a}.{b}.{leaf}" for a in range(3) for b in range(3) for leaf in range(12)]
    assert all(client.lines(f"ended-{key}") >= 1 for key in keys)
    assert recorded, "no activity had ended before the last kill"
    assert {key: client.lines(f"began-{key}") for key in recorded} == recorded


def test_a_killed_activity_is_delivered_again(start_host: StartHost) -> None:
    client = start_host()
    client.start("collect", "c1", 0)
    until(lambda: client.lines("began-c1"), "the activity to begin")
    client.host.kill()
    assert client.lines("ended-c1") == 0
    client = start_host()
    until(lambda: client.lines("began-c1") == 2, "the activity to begin again, though nobody asks for anything")
    assert client.output("c1") == []
    assert (client.lines("began-c1"), client.lines("ended-c1")) == (2, 1)


def test_a_durable_timer_fires_after_a_restart(start_host: StartHost) -> None:
    client = start_host()
    client.start("sleeper", "z1", 400)
    until(lambda: client.status("z1")["runtimeStatus"] == "Running", "the timer")
    client.host.kill()
    client = start_host()
    assert client.output("z1") >= 0.4


def test_suspension_and_kept_events_survive(start_host: StartHost) -> None:
    client = start_host()
    client.start("paused_work", "s1")
    until(lambda: client.status("s1")["runtimeStatus"] == "Running", "the start")
    client.call("POST", "instances/s1/suspend?reason=r")
    client.raise_event("s1", "step", 0)
    client.host.kill()
    client = start_host()
    assert client.status("s1")["runtimeStatus"] == "Suspended"
    client.raise_event("s1", "step", 1)
    client.raise_event("s1", "step", 2)
    client.run("chain", 1)
    assert client.lines("began-s1-0") == 0
    client.call("POST", "instances/s1/resume?reason=r")
    assert client.output("s1") == [0, 1, 2]


def test_an_instance_suspended_before_its_start(start_host: StartHost) -> None:
    client = start_host()
    client.call("POST", "orchestrators/plain/early", json={"n": 1})
    if client.call("POST", "instances/early/suspend").status_code == 202:
        client.call("POST", "instances/early/resume")
    assert client.output("early") == {"n": 1}


def changed_app(tmp_path: Path, old: str, new: str) -> Path:
    app_dir = tmp_path / "changed"
    shutil.copytree(APPS / "durable", app_dir, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    source = (app_dir / "function_app.py").read_text()
    assert old in source
    (app_dir / "function_app.py").write_text(source.replace(old, new, 1))
    return app_dir


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'yield context.call_activity("traced", {"key": context.instance_id, "sleep_s": 0.2})',
            'yield context.call_activity("echo", 1)',
            "task 1 of the history is activity 'traced', but the code scheduled activity 'echo' in its place",
        ),
        (
            'yield context.call_activity("traced", {"key": context.instance_id, "sleep_s": 0.2})',
            "yield context.create_timer(context.current_utc_datetime + timedelta(seconds=1))",
            "task 1 of the history is activity 'traced', but the code scheduled a timer in its place",
        ),
        (
            'yield context.call_activity("traced", {"key": context.instance_id, "sleep_s": 0.2})',
            "pass",
            "task 1 of the history is activity 'traced', but the code has not scheduled it on replay",
        ),
    ],
)
def test_changed_code_fails_the_instance_clearly(
    start_host: StartHost, tmp_path: Path, old: str, new: str, words: str
) -> None:
    client = start_host()
    client.start("collect", "n1", 1)
    until(lambda: client.lines("ended-n1"), "the activity")
    until(lambda: len(client.status("n1", "?showHistory=true")["historyEvents"]) > 1, "its result")
    client.host.stop()
    client = start_host(changed_app(tmp_path, old, new))
    client.raise_event("n1", "item", 1)
    status = client.wait("n1")
    assert status["runtimeStatus"] == "Failed"
    assert "Non-deterministic orchestrator" in status["output"]
    assert words in status["output"]
    # With the old code back, what had succeeded is not run again.
    client.host.stop()
    client = start_host()
    client.call("POST", "instances/n1/rewind?reason=old+code")
    assert client.output("n1") == [1]
    assert client.lines("began-n1") == 1


def test_a_removed_orchestrator_fails_its_instances_clearly(start_host: StartHost, tmp_path: Path) -> None:
    client = start_host()
    client.start("collect", "gone", 1)
    until(lambda: client.lines("ended-gone"), "the activity")
    client.host.kill()
    client = start_host(changed_app(tmp_path, "def collect(", "def collected("))
    client.raise_event("gone", "item", 1)
    assert "The function 'collect' doesn't exist" in client.wait("gone")["output"]


def test_many_instances_are_taken_up_again(start_host: StartHost) -> None:
    client = start_host()
    for n in range(200):
        client.call("POST", f"orchestrators/eternal/many-{n}")
    client.host.kill()
    client = start_host()
    for n in range(200):
        client.raise_event(f"many-{n}", "never")
    for n in range(200):
        assert client.wait(f"many-{n}")["runtimeStatus"] == "Completed"
