"""``python -m tools.migrate``: start, follow and steer migrations over the HTTP API."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from shared.policy.precheck_text import lines as precheck_lines
from shared.policy.progress_line import LiveLine, progress_line
from shared.policy.quantities import show_bytes
from tools.migrate.api import Api, BadAddress, Refused, Unreachable, segment
from tools.migrate.spec_file import BadSpecFile, read_spec
from tools.mltable_config import BadConfig, with_workspaces

OK, FAILED, USAGE, UNREACHABLE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130

_FINISHED: Final = frozenset({"completed", "completed_with_failures", "failed", "cancelled"})
_OUTCOMES: Final = ("uploaded", "skipped", "renamed", "deleted", "failed")
_STATUS_FIELDS: Final = ("id", "status", "progress", "links")
# A run of a short job is seen moving; one of many hours is asked twice a second, which costs the app little.
_POLL_S: Final = 0.5
# An app that restarts or scales is away for a while, and the run goes on.
_UNREACHABLE_FOR_S: Final = 60.0

_EPILOG: Final = """\
exit status:
  0    done; with --watch and watch: the run completed
  1    the run failed, was cancelled, or completed with failures (which one is said on stderr)
  2    bad usage, or a spec that cannot be run: each field is named
  3    the API cannot be reached, or what answers is not this API
  4    the API refused: no such run, wrong state, a run of that job is alive, wrong key
  130  Ctrl-C; a run that was watched goes on

environment:
  MIGRATE_URL   where the API is (default http://127.0.0.1:7071)
  MIGRATE_KEY   its function key; better than --key, which other users of this machine can see
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot show must not end the command.
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        url = getattr(arguments, "url", None) or os.environ.get("MIGRATE_URL") or "http://127.0.0.1:7071"
        api = Api(url, getattr(arguments, "key", None) or os.environ.get("MIGRATE_KEY", ""))
        status: int = arguments.run(api, arguments)
        sys.stdout.flush()
    except (BadSpecFile, BadAddress) as error:
        return _complain(str(error), USAGE)
    except Refused as error:
        for detail in error.details:
            print(f"  {detail.get('path', '')}: {detail.get('message', '')}", file=sys.stderr)
        return _complain(error.message, USAGE if error.status == 400 else REFUSED)
    except Unreachable as error:
        return _complain(str(error), UNREACHABLE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough; the interpreter must not complain when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return status


# -- commands ----------------------------------------------------------------------------------------------------------


def _start(api: Api, arguments: argparse.Namespace) -> int:
    return _started(api, arguments, api.call("POST", "/migrations", body=_spec(arguments.spec), holds=("id",)))


def _spec(name: str) -> dict[str, Any]:
    """A spec file; of MLTables with the content of the workspaces' ``config.json`` where it names those files."""
    spec = read_spec(name)
    config = spec.get("config")
    if spec.get("kind") == "mltable" and isinstance(config, dict):
        try:
            spec["config"] = with_workspaces(config, Path() if name == "-" else Path(name).parent)
        except BadConfig as error:
            raise BadSpecFile(f"{name}: config: {error}") from None
    return spec


def _reconcile(api: Api, arguments: argparse.Namespace) -> int:
    spec = read_spec(arguments.spec)
    if spec.get("kind") != "sql":
        raise BadSpecFile(f"{arguments.spec}: only jobs of kind: sql can be reconciled")
    spec["reconcile"] = "repair" if arguments.repair else "compare"
    return _started(api, arguments, api.call("POST", "/migrations", body=spec, holds=("id",)))


def _started(api: Api, arguments: argparse.Namespace, answer: dict[str, Any]) -> int:
    run = answer["id"]
    print(run, flush=True)
    if arguments.watch:
        return _follow(api, run)
    print(f"Started. To follow it: python -m tools.migrate watch {run}", file=sys.stderr)
    return OK


def _rows(progress: Mapping[str, Any]) -> str:
    """Of a migration of tables; how many there will be is an estimate, and of increments none is made."""
    done, planned = progress.get("rows_done", 0), progress.get("rows_planned", 0)
    return f"{done:,} of about {planned:,}" if planned else f"{done:,}" if done else ""


def _status(api: Api, arguments: argparse.Namespace) -> int:
    document = api.call("GET", _run_path(arguments), holds=_STATUS_FIELDS)
    if arguments.json:
        _print_json(document)
        return OK
    progress = document["progress"]
    rows = [
        ("Run", document["id"]),
        ("Status", document["status"]),
        ("Started", document["started_at"]),
        ("Updated", document["updated_at"]),
        ("Ended", document["ended_at"] or ""),
        ("Progress", progress_line(document, is_unicode=_is_unicode()).removeprefix(document["status"]).strip()),
        ("Items", ", ".join(f"{progress[name]:,} {name}" for name in _OUTCOMES if progress.get(name))),
        ("Rows", _rows(progress)),
        ("Source", _source_load(document)),
        ("Verification", _verification(document)),
        ("Error", _error(document)),
        ("Manifest", document["links"]["manifest"] if document["status"] in _FINISHED else ""),
    ]  # fmt: skip
    for name, text in rows:
        if text:
            print(f"{name:<13} {text}")
    return OK


def _watch(api: Api, arguments: argparse.Namespace) -> int:
    return _follow(api, arguments.id)


def _manifest(api: Api, arguments: argparse.Namespace) -> int:
    path, query = f"{_run_path(arguments)}/manifest", {"format": arguments.format}
    if arguments.output is None:
        api.download(path, query, sys.stdout.buffer)
        return OK
    output: Path = arguments.output
    try:
        # Beside it first: a transfer that breaks off must not pass for a manifest.
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name[:100]}-") as beside:
            part = Path(beside, "manifest")
            with part.open("xb") as file:
                api.download(path, query, file)
            part.replace(output)
    except OSError as error:
        return _complain(f"{output}: {error.strerror or error}", FAILED)
    print(f"{output}: {show_bytes(output.stat().st_size)}", file=sys.stderr)
    return OK


def _control(api: Api, arguments: argparse.Namespace) -> int:
    document = api.call("POST", f"{_run_path(arguments)}/{arguments.command}", holds=_STATUS_FIELDS)
    print(f"{document['id']}: {arguments.command} accepted; the run is {document['status']}")
    return OK


def _list(api: Api, arguments: argparse.Namespace) -> int:
    query = {name: getattr(arguments, name) for name in ("kind", "status", "name", "top", "continuation")}
    answer = api.call("GET", "/migrations", query=query, holds=("value",))
    if arguments.json:
        _print_json(answer)
        return OK
    rows = [("ID", "STATUS", "ITEMS", "FAILED", "BYTES", "ENDED")]
    for document in answer["value"]:
        progress = document["progress"]
        rows.append((
            document["id"], document["status"], f"{progress['planned']:,}", f"{progress['failed']:,}",
            show_bytes(progress["bytes_done"]), document["ended_at"] or "",
        ))  # fmt: skip
    _print_table(rows)
    if answer.get("continuation"):
        print(f"There are more: --continuation {answer['continuation']}", file=sys.stderr)
    return OK


def _schedules(api: Api, arguments: argparse.Namespace) -> int:
    answer = api.call("GET", "/schedules", holds=("value",))
    if arguments.json:
        _print_json(answer)
        return OK
    rows = [("NAME", "SCHEDULE", "NEXT", "LAST RUN", "LAST RESULT")]
    for one in answer["value"]:
        rows.append((one["name"], one["schedule"], one["next_at"], one["last_run"] or "", one["last_result"] or ""))
    _print_table(rows)
    return OK


def _schedule(api: Api, arguments: argparse.Namespace) -> int:
    spec = _spec(arguments.spec)
    if not isinstance(spec.get("name"), str):
        raise BadSpecFile(f"{arguments.spec}: needs a name, which is the schedule's as well")
    answer = api.call("PUT", f"/schedules/{segment(spec['name'])}", body=spec, holds=("name", "next_at"))
    print(f"{answer['name']}: next at {answer['next_at']}")
    return OK


def _unschedule(api: Api, arguments: argparse.Namespace) -> int:
    api.call("DELETE", f"/schedules/{segment(arguments.name)}")
    print(f"{arguments.name}: no longer scheduled; a run that is alive goes on")
    return OK


def _run_schedule(api: Api, arguments: argparse.Namespace) -> int:
    return _started(api, arguments, api.call("POST", f"/schedules/{segment(arguments.name)}/run", holds=("id",)))


# -- their parts -------------------------------------------------------------------------------------------------------


def _follow(api: Api, run: str) -> int:
    """Show a run until it ends; returns the exit status that its end calls for."""
    line = LiveLine(_write, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    lost_at_s: float | None = None
    try:
        while True:
            now_s = time.monotonic()
            try:
                document = api.call("GET", f"/migrations/{segment(run)}", holds=_STATUS_FIELDS)
            except Unreachable as error:
                # The first answer decides whether the address is right; later ones may fail for a while.
                if lost_at_s is None or now_s - lost_at_s > _UNREACHABLE_FOR_S:
                    raise
                line.show(f"{error}; trying again", now_s)
            else:
                lost_at_s = now_s
                if document["status"] in _FINISHED:
                    break
                line.show(progress_line(document, is_unicode=_is_unicode()), now_s)
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        line.close()
        print(
            f"No longer watching; the run goes on. To watch it again: python -m tools.migrate watch {run}",
            file=sys.stderr,
        )
        raise
    except BaseException:
        line.close()
        raise
    line.say(progress_line(document, is_unicode=_is_unicode()))
    verification = _verification(document)
    if verification:
        line.say(f"verification {verification}")
    for text in _precheck(api, run):
        line.say(text)
    if document["status"] == "completed":
        return OK
    failed = document["progress"]["failed"]
    reason = _error(document) or (f"{failed:,} items failed; the manifest names them" if failed else "")
    return _complain(f"{run} is {document['status']}" + (f": {reason}" if reason else ""), FAILED)


def _run_path(arguments: argparse.Namespace) -> str:
    return f"/migrations/{segment(arguments.id)}"


def _verification(document: dict[str, Any]) -> str:
    found = document.get("verification")
    if not found:
        return ""
    return f"{found['verdict']} ({found['mode']}: {found['listed']:,} listed, {found['hashes_checked']:,} read back)"


def _precheck(api: Api, run: str) -> list[str]:
    """What a dry run found, in a few lines; nothing for other runs."""
    try:
        summary = api.call("GET", f"/migrations/{segment(run)}/manifest", query={"format": "summary"})
    except (Refused, Unreachable):
        # The run has ended, whatever else can be told of it.
        return []
    return precheck_lines(summary["precheck"]) if summary.get("precheck") else []


def _source_load(document: dict[str, Any]) -> str:
    load = document.get("source_load")
    if not load:
        return ""
    spent = f"{load['units']:,} resource units in the last minute"
    if load["share"] is None:
        return spent
    return f"{spent}, {load['share'] * 100:.0f} % of the {load['ceiling']:,} allowed"


def _error(document: dict[str, Any]) -> str:
    error = document.get("error")
    return f"{error['code']}: {error['message']}" if error else ""


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _complain(message: str, status: int) -> int:
    print(f"migrate: {message}", file=sys.stderr)
    return status


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _is_unicode() -> bool:
    try:
        "█░".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


# -- the command line --------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    # Before and after the command; SUPPRESS, so that the one that is absent does not overwrite the one that is given.
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--url", help="where the API is (MIGRATE_URL; default http://127.0.0.1:7071)")
    common.add_argument("--key", help="function key (MIGRATE_KEY); never printed")
    parser = argparse.ArgumentParser(
        prog="python -m tools.migrate", description="Start, follow and steer migrations over the HTTP API.",
        parents=[common], epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Api, argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(run=run)
        return made

    start = command("start", _start, "start a run of a job spec; prints its id")
    start.add_argument("spec", metavar="SPEC.yaml", help="YAML or JSON; - reads standard input")
    start.add_argument("--watch", action="store_true", help="follow it to its end")
    reconcile = command("reconcile", _reconcile, "compare a SQL job's tables with the lake; prints the run's id")
    reconcile.add_argument("spec", metavar="SPEC.yaml", help="the job's; - reads standard input")
    reconcile.add_argument("--repair", action="store_true", help="mend what differs")
    reconcile.add_argument("--watch", action="store_true", help="follow it to its end; exit status 1 where one differs")
    status = command("status", _status, "where a run stands")
    status.add_argument("--json", action="store_true", help="the status document as it is")
    watch = command("watch", _watch, "follow a run to its end")
    manifest = command("manifest", _manifest, "what became of every item of a run that has ended")
    manifest.add_argument("--format", choices=("json", "summary", "csv", "md", "html"), default="json")
    manifest.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    steering = {
        "pause": "start nothing more until resume",
        "resume": "go on with a paused run",
        "cancel": "end a run; what was moved stays",
        "retry-failed": "try a finished run's failed items again, under the same id",
    }
    for made in (status, watch, manifest, *(command(name, _control, text) for name, text in steering.items())):
        made.add_argument("id", metavar="ID", help="of the run, as start and list print it")
    listing = command("list", _list, "runs, newest first")
    listing.add_argument("--kind", help="only of this kind")
    listing.add_argument("--status", help="only with this status")
    listing.add_argument("--name", help="only of this job")
    listing.add_argument("--top", metavar="N", help="how many (default 50)")
    listing.add_argument("--continuation", help="what the list before printed, to go on with")
    listing.add_argument("--json", action="store_true", help="the API's answer as it is")
    schedules = command("schedules", _schedules, "jobs that start by themselves")
    schedules.add_argument("--json", action="store_true", help="the API's answer as it is")
    schedule = command("schedule", _schedule, "start a job by itself, as its spec's schedule says")
    schedule.add_argument("spec", metavar="SPEC.yaml", help="YAML or JSON with a schedule; - reads standard input")
    unschedule = command("unschedule", _unschedule, "no longer start a job by itself")
    run_schedule = command("run-schedule", _run_schedule, "start a scheduled job now; prints the run's id")
    run_schedule.add_argument("--watch", action="store_true", help="follow it to its end")
    for made in (unschedule, run_schedule):
        made.add_argument("name", metavar="NAME")
    return parser


if __name__ == "__main__":
    sys.exit(main())
