"""``python -m tools.migrate_mltables``: its configuration, its files, its exit codes (section 7.5), its own host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.mltables import App, Workspaces, rows
from tests.support.platform import REPOSITORY, until


def write_config(folder: Path, ws: Workspaces, **changes: Any) -> Path:
    """The guide's three files, with its comments."""
    (folder / "config").mkdir(exist_ok=True)
    for side in ("source", "target"):
        (folder / "config" / f"{side}_config.json").write_text(json.dumps(ws.config(side)))
    document = {
        "migration_batch_id": "command-1", "source_workspace_config": "config/source_config.json",
        "target_workspace_config": "config/target_config.json", "defaults": {"validation": {"enabled": False}},
        "assets": [{"name": "cmd", "versions": ["1"], "destination_subpath": None}], **changes,
    }  # fmt: skip
    text = json.dumps(document, indent=2).replace('"defaults": {', '"defaults": { // suffix | skip | fail')
    path = folder / "migration_config.json"
    path.write_text(f"// Our migration\n{text[:-2]},\n}} /* with a comma too many */\n")
    return path


def command(app: App | None, config: Path, *more: str) -> list[str]:
    place = ["--url", app.host.url] if app is not None else []
    return [sys.executable, "-m", "tools.migrate_mltables", "--config", str(config), "--output", str(config.parent),
            *place, *more]  # fmt: skip


def run(app: App | None, config: Path, *more: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **(env or {})}
    done = subprocess.run(
        command(app, config, *more), cwd=config.parent, capture_output=True, text=True, env=environment, check=False,
        timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_dry_run_then_for_real(app: App, ws: Workspaces, tmp_path: Path) -> None:
    ws.add("cmd")
    config = write_config(tmp_path, ws)
    status, out, err = run(app, config, "--dry-run")
    assert (status, ws.blobs("target")) == (0, {}), err
    manifest = json.loads((tmp_path / "migration_manifest.json").read_text())
    assert [item["status"] for item in manifest["items"]] == ["planned"]
    status, out, err = run(app, config)
    assert status == 0, err
    manifest = json.loads((tmp_path / "migration_manifest.json").read_text())
    assert [(item["status"], item["migration_batch_id"]) for item in manifest["items"]] == [("success", "command-1")]
    for name in (
        "migration_manifest.csv",
        "migration_manifest.md",
        "migration_manifest.html",
        "migration_signoff.html",
    ):
        assert (tmp_path / name).stat().st_size > 100
    assert "May the source be deleted?" in out
    assert len(ws.migrated("cmd")) == 3


def test_the_dry_run_of_the_configuration_holds_and_is_said(app: App, ws: Workspaces, tmp_path: Path) -> None:
    ws.add("cmd")
    config = write_config(tmp_path, ws, defaults={"dry_run": True, "validation": {"enabled": False}})
    status, _, err = run(app, config)
    assert (status, ws.blobs("target")) == (0, {})
    assert "--no-dry-run" in err
    assert run(app, config, "--no-dry-run")[0] == 0
    assert len(ws.migrated("cmd")) == 3


@pytest.mark.parametrize(
    ("policy", "expected"), [("skip", 0), ("fail", 1), ("suffix", 0)]
)  # fmt: skip
def test_exit_code_after_a_collision(app: App, ws: Workspaces, tmp_path: Path, policy: str, expected: int) -> None:
    ws.add("cmd")
    ws.register("target", "cmd", "1", "azureml://datastores/workspaceblobstore/paths/other/")
    config = write_config(tmp_path, ws, defaults={"collision_policy": policy, "validation": {"enabled": False}})
    status, out, err = run(app, config, "--name", f"exit-{policy}")
    assert status == expected, err
    assert policy in out or policy == "suffix"


def test_exit_codes(app: App, ws: Workspaces, tmp_path: Path) -> None:
    ws.add("cmd")
    missing = [{"name": "cmd", "versions": ["1", "8"]}]
    assert run(app, write_config(tmp_path, ws, assets=missing), "--name", "exit-missing")[0] == 1
    bad = write_config(tmp_path, ws, assets=[{"name": "cmd", "versions": ["9..1"]}])
    status, _, err = run(app, bad)
    assert (status, "config.assets[0].versions[0]" in err) == (2, True)
    assert run(app, tmp_path / "none.json")[0] == 2
    (tmp_path / "migration_config.json").write_text("{ not json")
    status, _, err = run(app, tmp_path / "migration_config.json")
    assert (status, "line 1" in err) == (2, True)
    config = write_config(tmp_path, ws, source_workspace_config="config/gone.json")
    status, _, err = run(app, config)
    assert (status, "gone.json" in err) == (2, True)
    assert run(None, write_config(tmp_path, ws), "--url", "http://127.0.0.1:9")[0] == 3


def test_yaml_on_its_own_host_killed_and_started_again(ws: Workspaces, app: App, tmp_path: Path) -> None:
    """Without an address: the embedded host for the time of the command. After a SIGKILL the next one goes on."""
    ws.add("cmd", files={f"{n:02d}.csv": rows(3, n) for n in range(40)})
    write_config(tmp_path, ws)
    config = tmp_path / "migration.yaml"
    config.write_text(
        "# YAML is fine, and a bare number is a version\nsource_workspace_config: config/source_config.json\n"
        "target_workspace_config: config/target_config.json\nassets:\n  - {name: cmd, versions: [1]}\n"
        "defaults: {server_side_copy: never, parallel_copies: 2, validation: {enabled: false}}\n"
    )
    environment = {name: value for name, value in app.environment.items() if name != "RUN_STORE_URL"}
    settings = tmp_path / "settings.json"
    settings.write_text('{"IsEncrypted": false, "Values": {}}')
    more = ("--state", str(tmp_path / "state"), "--settings", str(settings))
    ws.emulators.set_faults([
        {"service": "azureml_blob", "path": "amltargetstore/*", "operation": "append_flush", "fault": "latency",
         "latency_ms": 250}
    ])  # fmt: skip
    process = subprocess.Popen(
        command(None, config, *more), env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert process.stdout is not None
    began = process.stdout.readline().strip()
    until(lambda: len(ws.migrated("cmd")) > 5, "some files")
    # Slow enough that the run is still under way when the second command gets to it.
    ws.emulators.set_faults([
        {"service": "azureml_blob", "path": "amltargetstore/*", "fault": "latency", "latency_ms": 2000}
    ])  # fmt: skip
    process.kill()
    process.wait()
    process.stdout.close()
    with subprocess.Popen(
        command(None, config, *more), env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    ) as second:  # fmt: skip
        assert second.stderr is not None
        first_lines = [second.stderr.readline(), second.stderr.readline()]
        ws.emulators.set_faults([])
        rest = second.stderr.read()
    assert second.returncode == 0, rest
    assert "that an earlier command left behind" in first_lines[0]
    assert first_lines[1] == f"Going on with {began}.\n"
    assert not (tmp_path / "state" / "command-host.json").exists()
    manifest = json.loads((tmp_path / "migration_manifest.json").read_text())
    assert [(item["status"], item["dest_file_count"]) for item in manifest["items"]] == [("success", 40)]
    assert len(ws.migrated("cmd")) == 41


def test_the_operators_command_reads_the_workspaces_by_name_as_well(app: App, ws: Workspaces, tmp_path: Path) -> None:
    ws.add("cmd")
    write_config(tmp_path, ws)
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "kind: mltable\nname: by-name\nconfig:\n  source_workspace_config: config/source_config.json\n"
        "  target_workspace_config: config\\target_config.json\n  assets: [{name: cmd, versions: [1]}]\n"
        "  defaults: {validation: {enabled: false}}\n"
    )

    def start() -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "tools.migrate", "--url", app.host.url, "start", str(spec), "--watch"],
            cwd=tmp_path.parent, capture_output=True, text=True, check=False, timeout=120,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        return done.returncode, done.stderr

    status, err = start()
    assert (status, len(ws.migrated("cmd"))) == (0, 3), err
    (tmp_path / "config" / "source_config.json").unlink()
    status, err = start()
    assert (status, "source_config.json" in err, "Traceback" in err) == (2, True, False)


def test_a_command_with_nothing_under_defaults(app: App, ws: Workspaces, tmp_path: Path) -> None:
    ws.add("cmd")
    write_config(tmp_path, ws)
    config = tmp_path / "empty.yaml"
    config.write_text(
        "source_workspace_config: config/source_config.json\ntarget_workspace_config: config/target_config.json\n"
        "defaults:\nassets: [{name: cmd, versions: [1]}]\n"
    )
    status, _, err = run(app, config, "--dry-run")
    assert (status, ws.blobs("target")) == (0, {}), err
