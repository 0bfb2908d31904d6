"""Orchestrations through the real SDK: every feature that the host offers, in one running host."""

from __future__ import annotations

import pytest

from tests.host.conftest import Client, until


def test_activities_in_order(durable: Client) -> None:
    assert durable.run("chain", 21, "chain-1") == [21, 42, "chain-1"]


@pytest.mark.parametrize("given", [None, 0, "text", "", [1, 2], {"a": {"b": None}}, True, "ünï"])
def test_input_and_output_round_trip(durable: Client, given: object) -> None:
    assert durable.run("plain", given) == given


def test_sync_activities_run_in_threads_and_async_ones_on_the_loop(durable: Client) -> None:
    sync_thread, async_thread = durable.run("threads")
    assert sync_thread.startswith("function")
    assert async_thread == "MainThread"


def test_fan_out_of_300(durable: Client) -> None:
    assert durable.run("fan_out", 300) == sum(range(300)) * 2


def test_concurrency_is_capped_as_host_json_says(durable: Client) -> None:
    assert durable.run("capped") == 8


def test_megabytes_pass_through(durable: Client) -> None:
    assert durable.run("big", 1_500_000) == 1_500_000


def test_ids_and_replay_flag_are_stable(durable: Client) -> None:
    first, second = durable.run("identity", None, "identity-1")
    assert first != second
    assert (durable.traces / "replays-identity-1").read_text().split() == ["False", "True"]


# Retries


def test_a_retry_succeeds(durable: Client) -> None:
    output = durable.run("retried", {"key": "r1", "failures": 2, "attempts": 3})
    assert output == "r1 after 3"


def test_retries_end_after_the_last_attempt(durable: Client) -> None:
    output = durable.run("retried", {"key": "r2", "failures": 9, "attempts": 3})
    assert output.startswith("gave up: Activity function 'flaky' failed:  ValueError: attempt 3 of r2 \n ")
    assert "Traceback" in output
    assert durable.lines("flaky-r2") == 3


def test_sliding_window_over_retrying_activities(durable: Client) -> None:
    output = durable.run("window", 24, "w")
    assert output == {
        "done": sorted(f"w-{n}" for n in range(24) if n % 4 < 3),
        "failed": sorted(f"w-{n}" for n in range(24) if n % 4 == 3),
    }
    assert durable.status("w")["customStatus"] == {"done": 18, "failed": 6}
    assert [durable.lines(f"flaky-w-{n}") for n in range(24)] == [min(n % 4 + 1, 3) for n in range(24)]


# Sub-orchestrations


def test_sub_orchestrations(durable: Client) -> None:
    named, unnamed = durable.run("parent", None, "p1")
    assert named == [1, 2, "p1-named"]
    assert unnamed[:2] == [2, 4]
    assert durable.status(unnamed[2])["runtimeStatus"] == "Completed"


def test_a_failed_sub_orchestration_reaches_its_parent(durable: Client) -> None:
    output = durable.run("parent_of_failing", "x")
    assert output.startswith("caught: The sub-orchestrator function 'failing' failed: ")
    assert "on purpose: x" in output


def test_a_sub_orchestration_is_retried_under_its_fixed_id(durable: Client) -> None:
    assert durable.run("parent_retrying", {"key": "sub", "failures": 2}, "p2") == "sub after 3"
    assert durable.status("p2-child")["runtimeStatus"] == "Completed"


def test_a_fixed_id_replaces_an_ended_instance_and_refuses_a_live_one(durable: Client) -> None:
    durable.run("plain", "before", "fixed")
    assert durable.run("parent_of_fixed", "fixed") == "again"
    assert durable.status("fixed")["input"] == '"again"'
    durable.start("eternal", "fixed-alive")
    assert "already" in durable.run("parent_of_fixed", "fixed-alive")


# Failures


def test_an_orchestrator_that_raises_fails_the_instance(durable: Client) -> None:
    status = durable.wait(durable.start("failing", None, "y"))
    assert status["runtimeStatus"] == "Failed"
    assert status["output"] == "Orchestrator function 'failing' failed: on purpose: y"


@pytest.mark.parametrize(
    ("orchestrator", "words"),
    [
        ("calls_unknown", "The function 'no_such_activity' doesn't exist, is disabled, or is not an activity function"),
        ("calls_entity", "calls a durable entity, which this host does not serve"),
    ],
)
def test_what_cannot_be_served_fails_clearly(durable: Client, orchestrator: str, words: str) -> None:
    status = durable.wait(durable.start(orchestrator))
    assert status["runtimeStatus"] == "Failed"
    assert words in status["output"]


def test_what_activities_may_do_to_the_host(durable: Client) -> None:
    exit_async, cancelled, surrogate, unserialisable, exit_sync = durable.run("misbehaviours")
    assert exit_async.endswith("The function called sys.exit(3).")
    assert cancelled.endswith("The function was cancelled from within.")
    assert surrogate.endswith("no such file: caf\\udce9.txt")
    assert "must be json serializable" in unserialisable
    assert exit_sync.endswith("The function called sys.exit(4).")
    assert durable.run("chain", 1)


def test_what_a_failing_orchestrator_shows_last_stays(durable: Client) -> None:
    durable.start("shows_and_fails", "sf")
    status = durable.wait("sf")
    assert (status["runtimeStatus"], status["customStatus"]) == ("Failed", "last words")


def test_custom_status_has_the_platform_s_limit(durable: Client) -> None:
    assert durable.run("status_size", 8190) == "done"
    status = durable.wait(durable.start("status_size", None, 8191))
    assert status["runtimeStatus"] == "Failed"
    assert "16386 bytes" in status["output"]


# Timers and events


def test_a_timer(durable: Client) -> None:
    assert durable.run("sleeper", 60) >= 0.06
    assert durable.run("sleeper", -1000) >= 0


def test_an_event_or_a_timeout(durable: Client) -> None:
    assert durable.run("with_timeout", 30) == "timed out"
    instance_id = durable.start("with_timeout", None, 3_600_000)
    assert durable.raise_event(instance_id, "go", {"now": True}).status_code == 202
    assert durable.output(instance_id) == {"now": True}


def test_events_before_the_wait_are_kept_in_order(durable: Client) -> None:
    durable.start("collect", "early", 3)
    for n in range(3):
        durable.raise_event("early", "item", n)
    durable.raise_event("early", "other", "nobody waits for this")
    assert durable.output("early") == [0, 1, 2]


def test_an_event_from_the_sdk_s_client_is_json_text(durable: Client) -> None:
    assert durable.run("told") == '{"from": "activity"}'


def test_continue_as_new_for_fifty_generations(durable: Client) -> None:
    assert durable.run("generations", {"n": 0, "until": 50}, "g1") == {"n": 50, "until": 50}
    status = durable.status("g1", "?showHistory=true")
    assert status["customStatus"] == 50
    assert [event["EventType"] for event in status["historyEvents"]] == ["ExecutionStarted", "ExecutionCompleted"]


def test_continue_as_new_keeps_unprocessed_events(durable: Client) -> None:
    durable.start("generations", "g2", {"n": 0, "until": 6, "takes": True})
    for n in range(6):
        durable.raise_event("g2", "item", n)
    assert durable.output("g2")["got"] == list(range(6))


# Control


def test_suspend_keeps_messages_until_resume(durable: Client) -> None:
    durable.start("paused_work", "s1")
    durable.raise_event("s1", "step", 0)
    until(lambda: durable.lines("ended-s1-0"), "the first step")
    assert durable.client("suspend", instance_id="s1", reason="lunch").status_code == 200
    assert durable.status("s1")["runtimeStatus"] == "Suspended"
    for n in (1, 2):
        durable.raise_event("s1", "step", n)
    durable.run("chain", 1)
    assert durable.lines("began-s1-1") == 0
    assert durable.client("resume", instance_id="s1", reason="back").status_code == 200
    assert durable.output("s1") == [0, 1, 2]


def test_terminate(durable: Client) -> None:
    durable.start("eternal", "t1")
    assert durable.client("terminate", instance_id="t1", reason="enough").status_code == 200
    status = durable.status("t1")
    assert (status["runtimeStatus"], status["output"]) == ("Terminated", "enough")
    assert durable.call("POST", "instances/t1/terminate?reason=again").status_code == 410
    assert durable.raise_event("t1", "never").status_code == 410
    assert durable.call("POST", "instances/t1/suspend").status_code == 410
    assert durable.client("raise_event", instance_id="t1", event_name="never").status_code == 400


def test_terminating_a_sub_orchestration_fails_it_for_the_parent(durable: Client) -> None:
    durable.start("parent_waiting_for", "t2", "t2-child")
    until(lambda: durable.call("GET", "instances/t2-child").status_code == 202, "the child")
    durable.call("POST", "instances/t2-child/terminate?reason=stop")
    assert "was terminated: stop" in durable.output("t2")


def test_rewind_runs_only_what_had_failed(durable: Client) -> None:
    durable.start("rewindable", "rw", "rw-flag")
    durable.raise_event("rw", "begin", "go")
    assert durable.wait("rw")["runtimeStatus"] == "Failed"
    until(lambda: durable.lines("ended-rw-late"), "the activity that was under way")
    (durable.traces / "rw-flag").touch()
    assert durable.client("rewind", instance_id="rw", reason="flag set").status_code == 200
    status = durable.wait("rw")
    assert status["runtimeStatus"] == "Failed"
    assert "no rw-flag-last" in status["output"]
    (durable.traces / "rw-flag-last").touch()
    assert durable.call("POST", "instances/rw/rewind?reason=again").status_code == 202
    first, results, last = durable.output("rw")
    assert (first, results[:2], last) == ("go", ["now it works"] * 2, "now it works")
    traced = [f"rw-{n}" for n in range(4)] + ["rw-c0", "rw-c1", "rw-late"]
    assert {key: durable.lines(f"began-{key}") for key in traced} == dict.fromkeys(traced, 1)
    assert durable.call("POST", "instances/rw/rewind").status_code == 410


def test_restart_under_a_new_id_and_under_the_same(durable: Client) -> None:
    durable.run("chain", 3, "again")
    answer = durable.call("POST", "instances/again/restart")
    assert answer.status_code == 202
    fresh = answer.json()["id"]
    assert fresh != "again"
    assert durable.output(fresh)[:2] == [3, 6]
    answer = durable.call("POST", "instances/again/restart?restartWithNewInstanceId=false")
    assert answer.json()["id"] == "again"
    assert durable.output("again")[:2] == [3, 6]
    assert durable.client("restart", instance_id="again").status_code == 200
    assert durable.call("POST", "instances/nobody/restart").status_code == 404
