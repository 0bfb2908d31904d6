"""A folder for what a load test fetches, gone afterwards, and gone at the next test if the process was killed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "mltable-"
_HELD = ".held"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A fresh folder; first those are deleted whose process is no longer there.

    Whoever uses one holds a lock on a file in it, which the system gives up however that process ends.
    """
    _sweep(Path(tempfile.gettempdir()))
    folder, held = _made()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _made() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        held = os.open(folder / _HELD, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(held, fcntl.LOCK_EX)
        if (folder / _HELD).exists():
            return folder, held
        # Swept between the two calls, as one that nobody held.
        os.close(held)


def _sweep(parent: Path) -> None:
    for lock in parent.glob(f"{_PREFIX}*/{_HELD}"):
        with suppress(OSError):
            # Not of another user, and not behind a link: this deletes.
            if lock.is_symlink() or lock.parent.is_symlink() or lock.stat().st_uid != os.getuid():
                continue
            held = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(held)
