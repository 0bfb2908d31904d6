"""Histories of real runs, replayed against the present code: an instance that is alive must survive a deployment."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import azure.durable_functions as df
import pytest

from local.host.durable.events import EventType
from local.host.durable.replay import OrchestrationFailure, TaskKey, check_determinism, run_orchestrator
from orchestrators import ORCHESTRATORS

FILES = sorted((Path(__file__).parent / "histories").glob("*.json"))
_SCHEDULED = {EventType.TASK_SCHEDULED, EventType.SUB_ORCHESTRATION_CREATED, EventType.TIMER_CREATED}


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def replay(history: dict[str, Any], function: Callable[..., Any] | None = None) -> Any:
    """Replay all of it; raises OrchestrationFailure where the code schedules anything but what stands there."""
    keys: list[TaskKey] = []
    inputs: list[Any] = []
    for event in history["events"]:
        if event["EventType"] in _SCHEDULED:
            about = event["HostTask"]
            if about["ordinal"] == len(keys):
                keys.append(TaskKey(about["kind"], event.get("Name") or ""))
                inputs.append(event.get("Input"))
    outcome = run_orchestrator(
        df.Orchestrator.create(function or ORCHESTRATORS[history["function"]]),
        [json.dumps(event) for event in history["events"]],
        input_json=history["input"], instance_id=history["instance"], parent_instance_id=None, is_replaying=True,
    )  # fmt: skip
    check_determinism(keys, outcome)
    assert [task.key for task in outcome.tasks] == keys, "the code schedules more than the history holds"
    assert [task.input for task in outcome.tasks] == inputs
    return outcome


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_code_does_what_the_history_says(path: Path) -> None:
    history = load(path)
    outcome = replay(history)
    if history["status"] == "Completed":
        assert outcome.error is None
        assert json.loads(outcome.output) == json.loads(history["output"])
    else:
        assert outcome.error is not None
        assert outcome.error.partition("\n")[0] in json.loads(history["output"])


def test_every_orchestrator_has_a_history() -> None:
    assert {load(path)["function"] for path in FILES} == set(ORCHESTRATORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_renamed_or_reordered_call_would_be_noticed(path: Path) -> None:
    history = load(path)
    scheduled = [
        position
        for position, event in enumerate(history["events"])
        if event["EventType"] == EventType.TASK_SCHEDULED and event["HostTask"]["attempt"] == 1
    ]
    for position in scheduled:
        renamed = copy.deepcopy(history)
        renamed["events"][position]["Name"] += "_renamed"
        with pytest.raises(OrchestrationFailure, match="Non-deterministic"):
            replay(renamed)
    names = [history["events"][position]["Name"] for position in scheduled]
    for first, second in zip(range(len(scheduled)), range(1, len(scheduled)), strict=False):
        if names[first] != names[second]:
            swapped = copy.deepcopy(history)
            one, other = (swapped["events"][scheduled[place]] for place in (first, second))
            one["Name"], other["Name"] = other["Name"], one["Name"]
            with pytest.raises(OrchestrationFailure, match="Non-deterministic"):
                replay(swapped)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_histories_are_small_and_neutral(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text) < 200_000
    for word in ("/tmp/", "/home/", "/root/", "secret", "Bearer", "AccountKey", "127.0.0.1"):
        assert word not in text
