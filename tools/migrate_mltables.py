"""``python -m tools.migrate_mltables``: the MLTable guide's own command.

It starts a migration of ``kind: mltable`` and follows it to its end: on the app whose address is given, or on the
embedded host, which it starts for that time. Interrupted or killed, it goes on with the same run when started again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from shared.policy.progress_line import LiveLine, progress_line
from tools.migrate.api import Api, BadAddress, Refused, Unreachable, segment
from tools.mltable_config import BadConfig, read_config

OK, FAILED, USAGE, UNREACHABLE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130

_REPOSITORY: Final = Path(__file__).resolve().parents[1]
_FINISHED: Final = frozenset({"completed", "completed_with_failures", "failed", "cancelled"})
_POLL_S: Final = 0.5
_UNREACHABLE_FOR_S: Final = 60.0
_ENDED_WITHIN_S: Final = 30.0
_ALIVE: Final = re.compile(r"mltable-[a-z0-9-]{1,40}-[0-9]{8}T[0-9]{6}Z(?:-[0-9]{1,6})?")
_OUTPUTS: Final = {"json": "migration_manifest.json", "csv": "migration_manifest.csv", "md": "migration_manifest.md",
                   "html": "migration_manifest.html", "signoff": "migration_signoff.html"}  # fmt: skip

_EPILOG: Final = """\
exit status:
  0    every version was migrated, or skipped as the policy says
  1    at least one failed or is missing in the source, or the run stopped (the manifest says which and why)
  2    bad usage, or a configuration that cannot be run: each field is named
  3    the app cannot be reached, or the embedded host did not start
  4    the app refused
  130  Ctrl-C; started again, the command goes on with the same run

The embedded host reads local.settings.json: CREDENTIAL_AZUREML_SOURCE and CREDENTIAL_AZUREML_TARGET belong there, or
into the environment.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        spec = _spec(arguments)
        with _app(arguments) as api:
            return _migrate(api, spec, arguments.output)
    except (BadConfig, BadAddress) as error:
        return _complain(str(error), USAGE)
    except Refused as error:
        for detail in error.details:
            print(f"  {detail.get('path', '')}: {detail.get('message', '')}", file=sys.stderr)
        return _complain(error.message, USAGE if error.status == 400 else REFUSED)
    except Unreachable as error:
        return _complain(str(error), UNREACHABLE)
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on with this run.", file=sys.stderr)
        return INTERRUPTED


def _spec(arguments: argparse.Namespace) -> dict[str, Any]:
    path: Path = arguments.config
    config = read_config(path)
    if config.get("defaults") is None:
        # As YAML reads a key with nothing behind it.
        config["defaults"] = {}
    defaults = config["defaults"]
    if arguments.dry_run is not None and isinstance(defaults, dict):
        defaults["dry_run"] = arguments.dry_run
    elif isinstance(defaults, dict) and defaults.get("dry_run") is True:
        print(f"{path} says dry_run: true, so nothing will be copied; --no-dry-run overrides it.", file=sys.stderr)
    name = arguments.name or re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:40].strip("-")
    return {"kind": "mltable", "name": name, "config": config}


@contextmanager
def _app(arguments: argparse.Namespace) -> Iterator[Api]:
    """The app: at the address that was given, or on an embedded host for the time of a ``with``."""
    url = arguments.url or os.environ.get("MIGRATE_URL")
    if url:
        yield Api(url, arguments.key or os.environ.get("MIGRATE_KEY", ""))
        return
    from local.host.process import HostFailed, launch
    from local.host.settings import HostError, read_local_settings

    settings: Path = arguments.settings or _REPOSITORY / "local.settings.json"
    try:
        told = {**read_local_settings(settings).values, **os.environ}
    except HostError as error:
        raise BadConfig(str(error)) from None
    # What every host needs and this command can know; a setting that is given wins.
    own = {"RUN_STORE_URL": f"file:{arguments.state.resolve() / 'store'}", "SCHEDULE_TICK": "0 0 0 1 1 *",
           "FUNCTIONS_WORKER_RUNTIME": "python"}  # fmt: skip
    missing = {name: value for name, value in own.items() if not told.get(name)}
    left = arguments.state / "command-host.json"
    if (orphan := _left_behind(left)) is not None:
        print(f"On the embedded host {orphan[0]} that an earlier command left behind.", file=sys.stderr)
        yield Api(orphan[0], "")
        _end(orphan[1])
        left.unlink(missing_ok=True)
        return
    try:
        host = launch(_REPOSITORY, arguments.state, env=missing, settings_file=settings)
    except HostFailed as failed:
        raise Unreachable(f"the embedded host did not start: {failed}") from None
    left.write_text(json.dumps({"url": host.url, "pid": host.pid}), encoding="utf-8")
    with host:
        print(f"On the embedded host {host.url}; its log is {host.log_path}.", file=sys.stderr)
        try:
            yield Api(host.url, "")
        except KeyboardInterrupt:
            print("Letting what is running end ...", file=sys.stderr)
            with suppress(TimeoutError, KeyboardInterrupt):
                host.stop()
            raise


def _left_behind(file: Path) -> tuple[str, int] | None:
    """Address and process of a host whose command was killed: it went on by itself, and holds the state."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        os.kill(told["pid"], 0)
        Api(told["url"], "").call("GET", "/migrations", query={"top": "1"}, holds=("value",))
    except (OSError, ValueError, KeyError, Unreachable, Refused):
        return None
    return told["url"], told["pid"]


def _end(pid: int) -> None:
    """Let a host of ours that is nobody's child end by itself, as Ctrl-C would."""
    deadline_s = time.monotonic() + _ENDED_WITHIN_S
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)
        while time.monotonic() < deadline_s:
            os.kill(pid, 0)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)


def _migrate(api: Api, spec: dict[str, Any], output: Path) -> int:
    try:
        run = str(api.call("POST", "/migrations", body=spec, holds=("id",))["id"])
    except Refused as busy:
        alive = _ALIVE.search(busy.message) if busy.code == "job_busy" else None
        if alive is None:
            raise
        # A run that this command began before it was interrupted or killed.
        run = alive[0]
        print(f"Going on with {run}.", file=sys.stderr)
    else:
        print(run, flush=True)
    document = _follow(api, run)
    output.mkdir(parents=True, exist_ok=True)
    for form, name in _OUTPUTS.items():
        part = output / f".{name}.part"
        with part.open("wb") as file:
            api.download(f"/migrations/{segment(run)}/manifest", {"format": form}, file)
        part.replace(output / name)
    manifest = api.call("GET", f"/migrations/{segment(run)}/manifest", holds=("items", "signoff"))
    _report(manifest, output)
    if document["status"] == "completed":
        return OK
    error = document.get("error")
    reason = f": {error['code']}: {error['message']}" if error else "; the manifest says which versions and why"
    return _complain(f"{run} is {document['status']}{reason}", FAILED)


def _follow(api: Api, run: str) -> dict[str, Any]:
    line = LiveLine(_write, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    lost_at_s: float | None = None
    resumed = False
    try:
        while True:
            now_s = time.monotonic()
            try:
                document = api.call("GET", f"/migrations/{segment(run)}", holds=("status", "progress", "links"))
            except Unreachable:
                lost_at_s = lost_at_s or now_s
                if now_s - lost_at_s > _UNREACHABLE_FOR_S:
                    raise
            else:
                lost_at_s = None
                if document["status"] in _FINISHED:
                    break
                if document["status"] == "paused" and not resumed:
                    resumed = True
                    print(f"The run is paused; python -m tools.migrate resume {run} lets it go on.", file=sys.stderr)
                line.show(progress_line(document, is_unicode=False), now_s)
            time.sleep(_POLL_S)
    except BaseException:
        line.close()
        raise
    line.say(progress_line(document, is_unicode=False))
    return document


def _report(manifest: dict[str, Any], output: Path) -> None:
    rows = [("ASSET", "VERSION", "BECAME", "STATUS", "WHY")]
    for item in manifest["items"]:
        why = f"{item['error_code']}: {item['error_detail']}" if item["error_code"] else item["reason"] or ""
        rows.append((item["asset_name"], item["requested_version"], item["final_version"] or "", item["status"],
                     why[:160]))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip())
    answer = manifest["signoff"]["may_delete_source"]
    print(f"May the source be deleted? {answer} (see {output / _OUTPUTS['signoff']})")
    print(f"Manifest: {output / _OUTPUTS['json']}, also as csv, md and html")


def _complain(message: str, status: int) -> int:
    print(f"migrate_mltables: {message}", file=sys.stderr)
    return status


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.migrate_mltables",
        description="Copy MLTable data assets of an Azure ML workspace to another tenant's and register them there.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="migration_config.json, or YAML")
    parser.add_argument(
        "--dry-run", action=argparse.BooleanOptionalAction, default=None,
        help="plan only; without it the configuration's defaults.dry_run holds",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="for manifest and sign-off (.)")
    parser.add_argument("--name", help="of the job; default: the configuration's file name")
    parser.add_argument("--url", help="of the app (MIGRATE_URL); default: an embedded host for the time of the command")
    parser.add_argument("--key", help="function key of the app (MIGRATE_KEY)")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="of the embedded host (local.settings.json)")
    parser.add_argument("--state", type=Path, default=_REPOSITORY / ".state" / "mltables", metavar="DIR",
                        help="of the embedded host (.state/mltables)")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
