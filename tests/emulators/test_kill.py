"""SIGKILL at any moment: what was acknowledged is there, and no half file is."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from local.emulators.launch import RunningEmulators, launch
from tests.emulators.wire_client import WireClient

FILES = "/Migration/Landing.Lakehouse/Files"
GONE = (OSError, http.client.HTTPException)


def restart(running: RunningEmulators) -> RunningEmulators:
    again = launch(running.root, plain=True)
    for key in ("onelake_dfs_url", "onelake_plain_url", "fabric_url", "authority_url", "ca_bundle"):
        assert again.addresses[key] == running.addresses[key]
    return again


def test_appended_data_survives(tmp_path: Path) -> None:
    running = launch(tmp_path, plain=True)
    wire = WireClient(running)
    wire.put_file("Landing.Lakehouse/Files/x", b"committed")
    assert wire.send("PATCH", f"{FILES}/x?action=append&position=9", body=b" and more").status == 202
    running.kill()
    with restart(running):
        # The token was issued before the kill.
        assert wire.send("GET", f"{FILES}/x").body == b"committed"
        assert wire.send("PATCH", f"{FILES}/x?action=flush&position=18").status == 200
        assert wire.send("GET", f"{FILES}/x").body == b"committed and more"


def expected(name: str, size_bytes: int) -> bytes:
    return (name.encode() * (size_bytes // len(name) + 1))[:size_bytes]


def small_commit(send: Callable[..., int], name: str) -> bytes:
    content = expected(name, 200_000)
    assert send("PUT", f"{FILES}/{name}?resource=file") == 201
    assert send("PATCH", f"{FILES}/{name}?action=append&position=0&flush=true", content) == 202
    return content


def three_call_commit(send: Callable[..., int], name: str) -> bytes:
    content = expected(name, 400_000)
    assert send("PUT", f"{FILES}/{name}?resource=file") == 201
    for position in (0, 200_000):
        block = content[position : position + 200_000]
        assert send("PATCH", f"{FILES}/{name}?action=append&position={position}", block) == 202
    assert send("PATCH", f"{FILES}/{name}?action=flush&position=400000") == 200
    return content


def large_commit(send: Callable[..., int], name: str) -> bytes:
    content = expected(name, 3_000_000)
    assert send("PUT", f"{FILES}/{name}?resource=file") == 201
    assert send("PATCH", f"{FILES}/{name}?action=append&position=0&flush=true", content) == 202
    return content


@pytest.mark.parametrize(
    ("commit", "whole_bytes"), [(small_commit, 200_000), (three_call_commit, 400_000), (large_commit, 3_000_000)]
)
def test_kill_while_committing(tmp_path: Path, commit: Callable[..., bytes], whole_bytes: int) -> None:
    running = launch(tmp_path, plain=True)
    wire = WireClient(running)
    token = wire.token()
    acknowledged: dict[str, bytes] = {}
    numbers = itertools.count()

    def write_until_gone() -> None:
        url = running.addresses["onelake_plain_url"].removeprefix("http://")
        connection = http.client.HTTPConnection(url, timeout=20)

        def send(method: str, target: str, body: bytes = b"") -> int:
            connection.request(method, target, body, {"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            answer.read()
            return answer.status

        with contextlib.suppress(*GONE):
            while True:
                name = f"{next(numbers)}.bin"
                acknowledged[name] = commit(send, name)

    for kill_after in (5, 17, 33):
        writers = [threading.Thread(target=write_until_gone) for _ in range(3)]
        before = len(acknowledged)
        for writer in writers:
            writer.start()
        while len(acknowledged) < before + kill_after:
            assert any(writer.is_alive() for writer in writers)
        running.kill()
        for writer in writers:
            writer.join()
        running = restart(running)
    with running:
        folder = running.lake_folder / "Migration" / "Landing.Lakehouse" / "Files"
        for file in folder.iterdir():
            content = file.read_bytes()
            if file.name in acknowledged:
                assert content == acknowledged[file.name]
            else:
                assert content in (b"", expected(file.name, len(content))), file
                assert len(content) in (0, whole_bytes), "half a file"
            answer = wire.send("GET", f"{FILES}/{file.name}")
            assert answer.body == content
        assert {file.name for file in folder.iterdir()} >= set(acknowledged)


def test_a_write_in_place_that_was_cut_off_is_taken_back(tmp_path: Path) -> None:
    """The one state a kill can leave on disk that is not a commit, made by hand: pending, half the bytes there."""
    from local.emulators.onelake.store import Store

    store = Store(tmp_path)
    path = str(tmp_path / "onelake" / "x")
    store.create_new(path, store.fresh())
    entry = store.look(path)
    assert entry is not None

    def cut_off(descriptor: int, attributes: object) -> None:
        raise KeyboardInterrupt

    write, store.attributes.write = store.attributes.write, cut_off  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        store.fill(path, entry, b"half of it", store.fresh())
    store.attributes.write = write  # type: ignore[method-assign]
    found = store.look(path)
    assert Path(path).stat().st_size == 10
    assert found is not None
    assert (found.size_bytes, found.etag) == (0, entry.etag)
    Store(tmp_path).clean()
    assert Path(path).stat().st_size == 0
    found = store.look(path)
    assert found is not None
    assert (found.size_bytes, found.etag, found.attributes.is_pending) == (0, entry.etag, False)


def test_several_processes_share_a_root(tmp_path: Path) -> None:
    with launch(tmp_path, processes=3) as running:
        wire = WireClient(running)
        for number in range(30):
            name = f"Landing.Lakehouse/Files/{number}"
            wire.put_file(name, b"x" * number)
            answer = wire.send("PATCH", f"/Migration/{name}?action=append&position={number}", body=b"end")
            assert answer.status == 202
            assert wire.send("PATCH", f"/Migration/{name}?action=flush&position={number + 3}").status == 200
            assert wire.send("GET", f"/Migration/{name}").body == b"x" * number + b"end"
        stats = running.stats()["onelake"]
        assert stats["create"] == {"201": 30}
        assert stats["read"] == {"200": 30}
        running.reset_stats()
        assert "onelake" not in running.stats()
        running.kill()
    with launch(tmp_path, processes=2) as running:
        assert wire.send("HEAD", f"{FILES}/29").headers["content-length"] == "32"


def test_without_extended_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from local.emulators.onelake import attributes
    from local.emulators.onelake.store import Store

    monkeypatch.setattr(attributes, "_has_extended_attributes", lambda probe: False)
    store = Store(tmp_path)
    path = str(tmp_path / "onelake" / "x")
    fresh = store.fresh()
    fresh.metadata = {"k": "v" * 5000}
    store.create_new(path, fresh)
    found = Store(tmp_path).look(path)
    assert found is not None
    assert (found.etag, found.attributes.metadata) == (fresh.etag, fresh.metadata)
    Path(path).write_bytes(b"by hand")
    found = store.look(path)
    assert found is not None
    assert (found.size_bytes, found.attributes.metadata) == (7, {})
