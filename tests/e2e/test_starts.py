"""One run of a job at a time, nothing moved twice, and no reader who meets half a file."""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from tests.support.platform import Answer, Lake, Platform, compare, make_files

_ROUNDS = 6


def test_two_starts_at_once(platform: Platform) -> None:
    make_files(platform.source("twice"), 5)
    spec = platform.spec("twice")
    with ThreadPoolExecutor(4) as threads:
        for _ in range(_ROUNDS):
            together = Barrier(4)

            def start(together: Barrier = together) -> Answer:
                together.wait()
                return platform.post("/migrations", spec)

            answers = [future.result() for future in [threads.submit(start) for _ in range(4)]]
            assert sorted(answer.status for answer in answers) == [202, 409, 409, 409]
            refused = next(answer for answer in answers if answer.status == 409)
            assert refused.error["code"] == "job_busy"
            platform.wait(next(answer.json["id"] for answer in answers if answer.status == 202), "completed")
    runs = platform.get("/migrations?name=twice").json["value"]
    assert len(runs) == _ROUNDS
    assert set(platform.commits("twice").values()) == {1}


def test_starts_of_two_jobs_do_not_wait_for_each_other(platform: Platform) -> None:
    for name in ("left", "right"):
        make_files(platform.source(name), 5)
    with ThreadPoolExecutor(2) as threads:
        together = Barrier(2)

        def start(name: str) -> str:
            together.wait()
            return platform.start(platform.spec(name))

        for run in list(threads.map(start, ("left", "right"))):
            platform.wait(run, "completed")


def test_a_rerun_uploads_nothing(platform: Platform) -> None:
    make_files(platform.source("rerun"), 40)
    for mode in ("full", "incremental"):
        spec = platform.spec("rerun", mode=mode, verify="all")
        platform.run(spec)
        mark = platform.mark()
        again = platform.run(spec)
        assert again["progress"]["skipped"] == 40
        assert again["progress"]["uploaded"] == 0
        assert platform.effects("rerun", mark) == []
        manifest = platform.assert_agreement(again["id"], "rerun")
        assert {item["status"] for item in manifest["items"]} == {"skipped"}
        assert all(item["hash"] for item in manifest["items"])


def test_a_changed_file_alone_is_moved(platform: Platform) -> None:
    source = platform.source("changed")
    make_files(source, 20)
    platform.run(platform.spec("changed"))
    changed = source / "d0" / "f0000.bin"
    changed.write_bytes(b"other bytes")
    (source / "d1" / "new.bin").write_bytes(b"new")
    mark = platform.mark()
    document = platform.run(platform.spec("changed", verify="all"))
    assert document["progress"]["uploaded"] == 2
    assert platform.commits("changed", mark) == {"d0/f0000.bin": 1, "d1/new.bin": 1}
    assert platform.bytes_uploaded("changed", mark) == len(b"other bytesnew")
    assert not compare(source, platform.lake("changed"))
    platform.assert_agreement(document["id"], "changed")


def test_the_same_size_and_another_time_is_compared_not_uploaded(platform: Platform) -> None:
    source = platform.source("touched")
    make_files(source, 10)
    platform.run(platform.spec("touched"))
    os.utime(source / "d0" / "f0000.bin", (1, 1))
    mark = platform.mark()
    document = platform.run(platform.spec("touched"))
    assert platform.effects("touched", mark) == []
    assert document["progress"]["skipped"] == 10


def test_a_reader_sees_the_old_file_or_the_new_one(platform: Platform) -> None:
    """A small file and one of several blocks are replaced again and again while somebody reads them without pause."""
    source = platform.source("read")
    sizes = {"small.bin": 300_000, "large.bin": 17_000_000}
    versions: dict[str, set[str]] = {name: set() for name in sizes}

    def write(number: int) -> None:
        for name, size in sizes.items():
            # Sizes differ, so that a mixture of two versions cannot pass for one of them.
            data = bytes([number]) * (size + number)
            versions[name].add(hashlib.sha256(data).hexdigest())
            (source / name).write_bytes(data)

    write(1)
    platform.run(platform.spec("read"))
    lake = Lake(platform.emulators)
    stop = threading.Event()
    seen: dict[str, list[tuple[int, str]]] = {name: [] for name in sizes}

    def read(name: str) -> None:
        while not stop.is_set():
            answer = lake.call("GET", f"Files/read/{name}")
            seen[name].append((answer.status, hashlib.sha256(answer.body).hexdigest()))

    readers = [threading.Thread(target=read, args=(name,)) for name in sizes for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(2, 8):
            write(number)
            document = platform.run(platform.spec("read", verify="none"))
            assert document["progress"]["uploaded"] == 2
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    for name in sizes:
        assert {status for status, _ in seen[name]} == {200}
        found = {digest for _, digest in seen[name]}
        assert found <= versions[name], "a reader met bytes that are no version of the file"
        assert len(found) >= 2, "the reader saw no replacement at all"
    assert not compare(source, platform.lake("read"))
