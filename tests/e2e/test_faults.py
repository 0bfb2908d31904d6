"""Services that fail in every way at once: the run ends, and names exactly the items that are to blame."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.platform import compare, make_files, running

_TENTH = [
    {"service": service, "fault": fault, "probability": 0.025, **more}
    for service in ("onelake", "fabric", "entra")
    for fault, more in (
        ("throttle", {"retry_after_s": 1}), ("unavailable", {}), ("reset_before", {}), ("reset_after", {}),
    )
]  # fmt: skip
_SLOW = {"fault": "latency", "latency_ms": 30}


@contextmanager
def restless(file: Path) -> Iterator[None]:
    """Write to a file all the time."""
    stop = threading.Event()

    def write() -> None:
        with file.open("r+b") as opened:
            while not stop.is_set():
                opened.seek(0)
                opened.write(os.urandom(16))
                opened.flush()
                time.sleep(0.002)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def test_everything_at_once(root: Path) -> None:
    """A tenth of all requests fails, tokens live two seconds, the lake is away for a while.

    Meanwhile one file changes as often as it is read, and one vanishes: these two are named, and nothing else is.
    """
    with running(root, fault_plan=[_SLOW, *_TENTH], token_lifetime_s=2, seed=5, RETRY_ATTEMPTS="5") as platform:
        source = platform.source("storm")
        make_files(source, 150, seed=1)
        make_files(source / "large", 2, seed=2, low=9_000_000, high=12_000_000, folders=1)
        (source / "large" / "restless.bin").write_bytes(os.urandom(20_000_000))
        (source / "zz-vanishes.bin").write_bytes(b"soon gone")
        spec = platform.spec("storm", verify="all", limits={"batch_items": 10, "parallel_batches": 2, "concurrency": 6})
        with restless(source / "large" / "restless.bin"):
            run = platform.start(spec)
            platform.wait_uploaded(run, 10)
            (source / "zz-vanishes.bin").unlink()
            platform.stop_emulators()
            time.sleep(3)
            platform.start_emulators()
            document = platform.wait(run, "completed", "completed_with_failures")
        assert document["status"] == "completed_with_failures"
        manifest = platform.assert_agreement(run, "storm")
        failed = {item["path"]: item["error_code"] for item in manifest["items"] if item["status"] == "failed"}
        assert failed == {"large/restless.bin": "source_changed", "zz-vanishes.bin": "source_gone"}
        assert manifest["counts"] == {"items": 154, "uploaded": 152, "failed": 2}
        assert manifest["errors"] == {"source_changed": 1, "source_gone": 1}
        assert manifest["verification"]["verdict"] == "passed"
        difference = compare(source, platform.lake("storm"))
        assert difference.missing == ["large/restless.bin"]
        assert not difference.extra
        assert not difference.different


def test_retried_only_what_failed(root: Path) -> None:
    """A lake that is away in mid-run costs the items that were on their way a second attempt, and the others none."""
    with running(root, fault_plan=[_SLOW]) as platform:
        make_files(platform.source("away"), 120, seed=3)
        spec = platform.spec("away", verify="all", limits={"batch_items": 10, "parallel_batches": 2, "concurrency": 4})
        run = platform.start(spec)
        platform.wait_uploaded(run, 20)
        platform.stop_emulators()
        time.sleep(2)
        platform.start_emulators()
        platform.wait(run, "completed")
        manifest = platform.assert_agreement(run, "away")
        assert manifest["counts"]["uploaded"] == 120
        assert set(platform.commits("away").values()) == {1}
        assert not compare(platform.source("away"), platform.lake("away"))
