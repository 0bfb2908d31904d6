"""The operator's command line against the real app: what it prints, what it asks, and every exit status."""

from __future__ import annotations

import csv
import io
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.platform import Platform, make_files, until
from tests.tools.conftest import Migrate, begin_migrate, run_migrate

SpecFile = Callable[..., str]


def slow(platform: Platform, name: str) -> dict[str, Any]:
    """A job that takes many seconds, in batches small enough to be stopped between them."""
    make_files(platform.source(name), 60, low=8000, high=8000)
    return platform.spec(name, verify="none", limits={"bandwidth": "32KiB/s", "batch_items": 2, "parallel_batches": 2})


def started(answer: Any) -> str:
    assert answer.returncode == 0, answer.stderr
    run: str = answer.stdout.splitlines()[0]
    return run


def end(platform: Platform, run: str) -> None:
    platform.post(f"/migrations/{run}/cancel")
    platform.wait(run, "cancelled", "completed")


# -- the way of a run --------------------------------------------------------------------------------------------------


def test_a_run_is_started_and_watched_to_its_end(platform: Platform, migrate: Migrate, spec_file: SpecFile) -> None:
    make_files(platform.source("watched"), 12)
    answer = migrate("start", spec_file(json.dumps(platform.spec("watched"))), "--watch")
    run = started(answer)
    assert run.startswith("files-watched-")
    assert "completed" in answer.stdout
    assert "12 of 12 items" in answer.stdout
    assert "verification passed" in answer.stdout
    assert "\x1b" not in answer.stdout, "control characters belong on terminals"
    assert migrate("watch", run).returncode == 0


def test_a_dry_run_tells_what_it_found(platform: Platform, migrate: Migrate, spec_file: SpecFile) -> None:
    source = platform.source("asked")
    for path in ("a.pdf", "b.pdf", "B.pdf", "bad."):
        (source / path).write_bytes(b"12345")
    answer = migrate("start", spec_file(json.dumps(platform.spec("asked", dry_run=True))), "--watch")
    assert answer.returncode == 1, "an item would fail"
    shown = answer.stdout.splitlines()
    assert "pre-check    4 items, 20 B; of these 3 items, 15 B would be read" in shown
    assert "would be     3 created, 1 failed" in shown
    assert "would fail   1 x names that the lake cannot take" in shown
    assert "to know      1 x paths that differ only in case" in shown
    assert [line for line in shown if line.startswith("duration")]
    run = shown[0]
    summary = json.loads(migrate("manifest", run, "--format", "summary").stdout)
    assert summary["precheck"]["items"] == 4
    assert "items" not in summary
    assert "pre-check" not in migrate("start", spec_file(json.dumps(platform.spec("asked"))), "--watch").stdout


def test_status_and_list_for_people_and_programs(platform: Platform, migrate: Migrate, spec_file: SpecFile) -> None:
    make_files(platform.source("listed"), 3)
    run = started(migrate("start", spec_file(json.dumps(platform.spec("listed")))))
    platform.wait(run, "completed")
    shown = migrate("status", run)
    assert shown.returncode == 0
    assert run in shown.stdout
    assert "3 uploaded" in shown.stdout
    assert json.loads(migrate("status", run, "--json").stdout) == platform.status(run)
    assert run in migrate("list", "--name", "listed", "--kind", "files", "--status", "completed").stdout
    found = json.loads(migrate("list", "--name", "listed", "--top", "1", "--json").stdout)
    assert [one["id"] for one in found["value"]] == [run]
    assert migrate("list", "--name", "nobody").stdout.splitlines() == ["ID  STATUS  ITEMS  FAILED  BYTES  ENDED"]


def test_the_list_is_newest_first_and_goes_on(platform: Platform, migrate: Migrate) -> None:
    platform.source("often")
    runs = [platform.run(platform.spec("often"))["id"] for _ in range(4)]

    def ids(answer: Any) -> list[str]:
        return [line.split()[0] for line in answer.stdout.splitlines()[1:]]

    assert ids(migrate("list", "--name", "often")) == runs[::-1]
    first = migrate("list", "--name", "often", "--top", "3")
    assert ids(first) == runs[:0:-1]
    continuation = first.stderr.split()[-1]
    assert ids(migrate("list", "--name", "often", "--continuation", continuation)) == runs[:1]


def test_the_manifest_in_every_format(
    platform: Platform, migrate: Migrate, spec_file: SpecFile, tmp_path: Path
) -> None:
    (platform.source("told") / "naïve 🧾.txt").write_text("x")
    run = started(migrate("start", spec_file(json.dumps(platform.spec("told"))), "--watch"))
    assert json.loads(migrate("manifest", run).stdout)["items"][0]["path"] == "naïve 🧾.txt"
    rows = list(csv.DictReader(io.StringIO(migrate("manifest", run, "--format", "csv").stdout)))
    assert [row["path"] for row in rows] == ["naïve 🧾.txt"]
    assert run in migrate("manifest", run, "--format", "md").stdout
    output = tmp_path / "manifest.html"
    written = migrate("manifest", run, "--format", "html", "--output", str(output))
    assert written.returncode == 0
    assert written.stdout == ""
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_manifest_that_cannot_be_written(
    platform: Platform, migrate: Migrate, spec_file: SpecFile, tmp_path: Path
) -> None:
    make_files(platform.source("unwritten"), 1)
    run = started(migrate("start", spec_file(json.dumps(platform.spec("unwritten"))), "--watch"))
    answer = migrate("manifest", run, "--output", str(tmp_path / "no such folder" / "manifest.json"))
    assert (answer.returncode, "No such file" in answer.stderr, "Traceback" in answer.stderr) == (1, True, False)


def test_pause_resume_and_a_second_start(platform: Platform, migrate: Migrate, spec_file: SpecFile) -> None:
    spec = spec_file(json.dumps(slow(platform, "paused")))
    run = started(migrate("start", spec))
    assert migrate("pause", run).returncode == 0
    platform.wait(run, "paused")
    busy = migrate("start", spec)
    assert busy.returncode == 4
    assert run in busy.stderr
    assert migrate("manifest", run).returncode == 4
    resumed = migrate("resume", run)
    assert (resumed.returncode, run in resumed.stdout) == (0, True)
    assert migrate("cancel", run).returncode == 0
    watched = migrate("watch", run)
    assert watched.returncode == 1
    assert f"{run} is cancelled" in watched.stderr


def test_failures_are_said_and_can_be_tried_again(platform: Platform, migrate: Migrate, spec_file: SpecFile) -> None:
    make_files(platform.source("partly"), 3)
    (platform.source("partly") / "ends in a dot.").write_text("x")
    answer = migrate("start", spec_file(json.dumps(platform.spec("partly"))), "--watch")
    run = answer.stdout.splitlines()[0]
    assert answer.returncode == 1
    assert "completed_with_failures: 1 items failed" in answer.stderr
    assert migrate("retry-failed", run).returncode == 0
    assert migrate("watch", run).returncode == 1
    assert platform.status(run)["round"] == 2


def test_a_run_that_fails(platform: Platform, migrate: Migrate, spec_file: SpecFile) -> None:
    make_files(platform.source("stopped"), 1)
    spec = platform.spec("stopped")
    spec["target"]["workspace"] = "Paused"
    answer = migrate("start", spec_file(json.dumps(spec)), "--watch")
    assert answer.returncode == 1
    assert " is failed: capacity_paused: " in answer.stderr


def test_ctrl_c_stops_watching_and_not_the_run(platform: Platform, migrate: Migrate, spec_file: SpecFile) -> None:
    run = started(migrate("start", spec_file(json.dumps(slow(platform, "left-alone")))))
    watching = begin_migrate(platform.host.url, "watch", run)
    assert watching.stdout is not None
    assert watching.stdout.readline(), "it shows something first"
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert "the run goes on" in errors
    assert f"watch {run}" in errors
    assert "Traceback" not in errors
    before = platform.status(run)["progress"]["uploaded"]
    until(lambda: platform.status(run)["progress"]["uploaded"] > before, "the run to go on")
    end(platform, run)


def test_schedules(platform: Platform, migrate: Migrate, spec_file: SpecFile) -> None:
    make_files(platform.source("nightly"), 2)
    spec = spec_file(json.dumps({**platform.spec("nightly"), "schedule": "0 0 2 * * *"}))
    assert "nightly: next at " in migrate("schedule", spec).stdout
    ran = migrate("run-schedule", "nightly", "--watch")
    assert ran.returncode == 0
    run = ran.stdout.splitlines()[0]
    shown = migrate("schedules").stdout
    assert "0 0 2 * * *" in shown
    assert run in shown
    assert json.loads(migrate("schedules", "--json").stdout)["value"][0]["name"] == "nightly"
    assert migrate("unschedule", "nightly").returncode == 0
    assert migrate("unschedule", "nightly").returncode == 4
    assert migrate("run-schedule", "nightly").returncode == 4


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_each_field_of_a_bad_spec_is_named(platform: Platform, migrate: Migrate, spec_file: SpecFile) -> None:
    spec = {**platform.spec("wrong"), "mode": "sideways", "surprise": 1}
    answer = migrate("start", spec_file(json.dumps(spec)))
    assert answer.returncode == 2
    assert "  mode: " in answer.stderr
    assert "  surprise: " in answer.stderr


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("kind: files\nname: [a\ntarget: b\n", "spec.yaml", "spec.yaml, line 3"),
        ("kind: files\n\tname: a\n", "spec.yaml", "spec.yaml, line 2"),
        ('{\n  "kind": "files",\n}', "spec.json", "spec.json, line 3"),
        ("- a\n- b\n", "spec.yaml", "must hold a mapping"),
        ("", "spec.yaml", "must hold a mapping"),
        ("kind: !!python/object:os.system x\n", "spec.yaml", "could not determine a constructor"),
        ("kind: &a [*a]\n", "spec.yaml", "is not YAML"),
        ("kind: !!binary aGk=\n", "spec.yaml", "a type that a spec cannot have"),
    ],
)
def test_a_file_that_is_no_spec(migrate: Migrate, spec_file: SpecFile, text: str, name: str, told: str) -> None:
    answer = migrate("start", spec_file(text, name))
    assert (answer.returncode, answer.stdout) == (2, "")
    assert told in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_file_that_is_not_there(migrate: Migrate, tmp_path: Path) -> None:
    answer = migrate("start", str(tmp_path / "nothing.yaml"))
    assert answer.returncode == 2
    assert "nothing.yaml: No such file or directory" in answer.stderr


def test_yaml_on_standard_input_and_json_with_tabs(platform: Platform, migrate: Migrate, spec_file: SpecFile) -> None:
    make_files(platform.source("2024-11-21"), 1)
    folder = platform.source("2024-11-21")
    yaml = (
        f"kind: files\nname: 2024-11-21\nsource: {{type: folder, path: {folder}}}\n"
        "target:\n  workspace: Migration\n  lakehouse: Landing\n  path: Files/dated\n"
    )
    run = started(migrate("start", "-", "--watch", stdin=yaml))
    assert run.startswith("files-2024-11-21-"), "what looks like a date to YAML was meant as a name"
    tabbed = json.dumps(platform.spec("2024-11-21"), indent="\t")
    assert migrate("start", spec_file(tabbed, "spec.json"), "--watch").returncode == 0


@pytest.mark.parametrize("command", ["status", "watch", "manifest", "pause", "resume", "cancel", "retry-failed"])
def test_there_is_no_such_run(migrate: Migrate, command: str) -> None:
    answer = migrate(command, "files-nobody-20240101T000000Z")
    assert answer.returncode == 4
    assert "there is no such run" in answer.stderr


def test_the_wrong_moment(platform: Platform, migrate: Migrate, spec_file: SpecFile) -> None:
    make_files(platform.source("over"), 1)
    run = started(migrate("start", spec_file(json.dumps(platform.spec("over"))), "--watch"))
    answer = migrate("pause", run)
    assert answer.returncode == 4
    assert "completed" in answer.stderr


@pytest.mark.parametrize(
    "arguments",
    [(), ("fly",), ("start",), ("status",), ("manifest", "x", "--format", "pdf"), ("list", "--top", "0"),
     ("list", "--status", "happy"), ("--url", "ftp://x", "list"), ("--url", "http://x?code=s3cret", "list"),
     ("--url", "http://[", "list"), ("--key", "s3cret\nX: y", "list"), ("--key", "s3crét", "list")],
)  # fmt: skip
def test_bad_usage(migrate: Migrate, arguments: tuple[str, ...]) -> None:
    answer = migrate(*arguments)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr
    assert "s3cr" not in answer.stderr


def test_the_address_is_taken_before_and_after_the_command(platform: Platform) -> None:
    for arguments in (("--url", platform.host.url, "list"), ("list", "--url", f"{platform.api}/")):
        assert run_migrate("http://127.0.0.1:1", *arguments).returncode == 0
