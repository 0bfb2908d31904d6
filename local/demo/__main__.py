"""``python -m local.demo``: migrate sample files, a SharePoint library and a database over HTTP, and check everything.

Exit status: 0 if all is well, 1 if a step failed (what it was and where the logs are is printed, and the work folder
stays), 2 if the command line will not do, 130 when Ctrl-C ended it.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from local.demo.invoices import SPECIAL_NAMES
from local.demo.platform import StepFailed
from local.demo.story import Story
from local.emulators.launch import EmulatorsFailed
from shared.policy.progress_line import LiveLine

_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_MARKER: Final = ".onelake-demo"
_MOST_FILES: Final = 1_000_000
_INTERRUPTED: Final = 130
_USAGE: Final = 2


class _Unusable(Exception):
    """The work folder cannot be used; the text says why and what to do."""


def main() -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args()
    work: Path = arguments.work.resolve()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    line = LiveLine(_write, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    story = Story(
        work, files=arguments.files, seed=arguments.seed, kills=arguments.kill, line=line, is_unicode=_is_unicode()
    )
    try:
        with _work_folder(work):
            story.tell(keep=arguments.keep)
            if not arguments.keep:
                shutil.rmtree(work)
    except _Unusable as error:
        print(f"local.demo: {error}", file=sys.stderr)
        return _USAGE
    except (StepFailed, EmulatorsFailed, OSError) as error:
        line.close()
        print(f"\nThe demo FAILED at: {story.step}\n  {error}\n", file=sys.stderr)
        print("Logs, and all that it made, are kept:", file=sys.stderr)
        for name, log in story.logs().items():
            print(f"  {name:<12}{log}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        line.close()
        print(f"Interrupted at: {story.step}. Everything that was started has been stopped.", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m local.demo",
        description="See the migration work on this machine alone: starts emulators and the app, makes sample PDFs, "
        "moves them into the lake over HTTP, then a SharePoint library and a shop's database with their changes, "
        "compares every byte and every row, and prints a report.",
        epilog="Exit status: 0 all is well, 1 a step failed, 2 bad arguments, 130 interrupted.",
    )
    parser.add_argument(
        "--files", type=_file_count, default=2000, metavar="N",
        help=f"how many sample files (default 2000, about 360 MiB; at least the {len(SPECIAL_NAMES)} with special "
        "names are made)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="the same seed, the same files (default 1)")
    parser.add_argument("--kill", action="store_true", help="kill the app with SIGKILL several times on the way")
    parser.add_argument("--keep", action="store_true", help="leave it running, and print where, until Ctrl-C")
    parser.add_argument(
        "--work", type=Path, default=_REPOSITORY / ".state" / "demo", metavar="DIR",
        help="where everything lies meanwhile (default .state/demo); must be empty, missing, or of an earlier demo",
    )  # fmt: skip
    return parser


def _file_count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= _MOST_FILES:
        raise argparse.ArgumentTypeError(f"write a number from 1 to {_MOST_FILES:,}, not {text!r}")
    return int(text)


@contextmanager
def _work_folder(work: Path) -> Iterator[None]:
    """Hold the folder for this demo alone, emptied of what an earlier one left.

    Raises:
        _Unusable: Another demo has it, or what lies there is not a demo's.
    """
    marker = work / _MARKER
    try:
        if work.exists() and not work.is_dir():
            raise _Unusable(f"{work} is not a folder; give another with --work.")
        if work.is_dir() and not marker.exists() and any(work.iterdir()):
            raise _Unusable(f"{work} holds files that are not a demo's; give another folder with --work.")
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _Unusable(f"{work} cannot be used ({error.strerror}); give another folder with --work.") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _Unusable(f"another demo uses {work}; end it, or give another folder with --work.") from None
        for entry in work.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != marker:
                entry.unlink()
        yield
    finally:
        os.close(lock)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # A second signal must not cut short the stopping of the children.
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _is_unicode() -> bool:
    try:
        "█░".encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
