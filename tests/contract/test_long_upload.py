"""An upload in parts: what a kill at any moment and a hand-back leave, and that nothing is sent twice."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest

from shared.clients.onelake import long_upload
from shared.clients.onelake.long_upload import PARKED
from shared.clients.onelake.service import SMALL_BLOCK_BYTES
from shared.errors import ItemError, SourceChanged, TargetConflict, TransientError
from shared.ports import LongWritten
from tests.support.emulated import Content, Lake

SIZE = 5 * SMALL_BLOCK_BYTES + 12345
PART = 2 * SMALL_BLOCK_BYTES
DATA = os.urandom(SIZE)


class Killed(BaseException):
    pass


class Journal:
    """In memory; dies at a given step, before or after it takes effect."""

    def __init__(self) -> None:
        self.document: dict[str, Any] | None = None
        self.steps = 0
        self.dies_at: int | None = None
        self.dies_before = True

    async def load(self) -> dict[str, Any] | None:
        return self.document

    async def save(self, document: dict[str, Any]) -> None:
        self._step(document)

    async def clear(self) -> None:
        self._step(None)

    def _step(self, document: dict[str, Any] | None) -> None:
        self.steps += 1
        if self.steps == self.dies_at and self.dies_before:
            raise Killed
        self.document = document
        if self.steps == self.dies_at:
            raise Killed


class Source:
    """One file; ``opened`` counts how often."""

    def __init__(self, data: bytes = DATA, version: str = "v1") -> None:
        self.data = data
        self.version = version
        self.opened = 0

    async def open(self) -> Content:
        self.opened += 1
        content = Content(self.data)
        content.version = self.version
        return content


async def go_on(
    lake: Lake, source: Source, journal: Journal, *, new: bool = True, hands_back: bool = False, **options: Any
) -> LongWritten | None:
    return await lake.folder.upload_long(
        "d/large", source.open, journal, new=new, part_bytes=PART, is_over=lambda: hands_back, **options
    )


def assert_whole(lake: Lake, done: LongWritten | None, data: bytes = DATA) -> None:
    assert done is not None
    assert (done.written.size_bytes, done.written.md5) == (len(data), hashlib.md5(data).hexdigest())
    assert lake.on_disk() == {"d/large": data}, "whole, and nothing staged is left"


def sent(lake: Lake) -> int:
    return sum(one["bytes"] for one in lake.effects("append"))


async def test_parts_become_one_file(lake: Lake) -> None:
    source, journal = Source(), Journal()
    done = await go_on(lake, source, journal)
    assert_whole(lake, done)
    found = await lake.folder.properties("d/large")
    assert found is not None
    assert done is not None
    assert (found.md5, found.etag, done.version) == (done.written.md5, done.written.etag, "v1")
    assert len(lake.effects("flush")) == 3
    assert journal.document is None


async def test_nobody_sees_a_part(lake: Lake) -> None:
    await lake.folder.create("d/large", Content(b"old"))
    journal = Journal()
    assert await go_on(lake, Source(), journal, new=False, hands_back=True) is None
    assert lake.on_disk()["d/large"] == b"old"
    assert_whole(lake, await go_on(lake, Source(), journal, new=False))


async def test_handed_back_and_taken_up_by_the_same_process(lake: Lake) -> None:
    source, journal, deliveries = Source(), Journal(), 0
    done = None
    while done is None:
        done = await go_on(lake, source, journal, hands_back=True)
        deliveries += 1
    assert_whole(lake, done)
    assert (deliveries, source.opened, sent(lake)) == (3, 1, SIZE), "read once, sent once"
    assert lake.folder.parked == {}


async def test_handed_back_and_taken_up_by_another_process(lake: Lake) -> None:
    source, journal, done = Source(), Journal(), None
    while done is None:
        done = await go_on(lake, source, journal, hands_back=True)
        lake.folder.parked.clear()
    assert_whole(lake, done)
    assert (source.opened, sent(lake)) == (3, SIZE), "hashed again, not sent again"


async def test_hashing_again_what_is_there_may_take_several_deliveries_too(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file so large that reading it takes longer than an activity may."""
    source, journal = Source(), Journal()
    for _ in range(2):
        assert await go_on(lake, source, journal, hands_back=True) is None
    lake.folder.parked.clear()
    there = sent(lake)
    monkeypatch.setattr(long_upload, "_CATCH_UP_PARTS", 1)
    assert await go_on(lake, source, journal, hands_back=True) is None
    assert (there, sent(lake)) == (2 * PART, there), "nothing is sent before all that is there was hashed"
    assert_whole(lake, await go_on(lake, source, journal, hands_back=True))
    assert (source.opened, sent(lake)) == (2, SIZE), "read on from where it was handed back"


@pytest.mark.parametrize("dies_before", [True, False])
@pytest.mark.parametrize("dies_at", [1, 2, 3, 4, 5])
async def test_a_kill_at_any_step_of_the_journal(lake: Lake, dies_at: int, dies_before: bool) -> None:
    journal = Journal()
    journal.dies_at, journal.dies_before = dies_at, dies_before
    with pytest.raises(Killed):
        await go_on(lake, Source(), journal)
    journal.dies_at = None
    lake.folder.parked.clear()
    try:
        done = await go_on(lake, Source(), journal)
    except TargetConflict as error:
        # In its place already, with the journal gone: who delivers again compares it with the source.
        assert (error.code, dies_at, dies_before) == ("target_exists", 5, False)
        assert lake.on_disk() == {"d/large": DATA}
        return
    on_disk = {path: data for path, data in lake.on_disk().items() if ".olm-staging-" not in path}
    assert done is not None
    assert done.written.md5 == hashlib.md5(DATA).hexdigest()
    assert on_disk == {"d/large": DATA}
    assert sent(lake) == SIZE, "not a byte twice"


async def test_a_source_that_changed_meanwhile_begins_anew(lake: Lake) -> None:
    journal = Journal()
    assert await go_on(lake, Source(), journal, hands_back=True) is None
    lake.folder.parked.clear()
    other = os.urandom(SIZE)
    assert_whole(lake, await go_on(lake, Source(other, "v2"), journal), other)


async def test_a_source_that_changes_while_it_is_read_leaves_nothing(lake: Lake) -> None:
    journal = Journal()

    class Changing(Content):
        async def finish(self) -> None:
            raise SourceChanged("it did")

    async def open_changing() -> Content:
        return Changing(DATA)

    with pytest.raises(SourceChanged):
        await lake.folder.upload_long(
            "d/large", open_changing, journal, new=True, part_bytes=PART, is_over=lambda: False
        )
    assert journal.document is None
    assert lake.on_disk() == {}


async def test_a_staged_file_that_somebody_removed_begins_anew(lake: Lake) -> None:
    source, journal = Source(), Journal()
    assert await go_on(lake, source, journal, hands_back=True) is None
    assert journal.document is not None
    await lake.folder.delete(journal.document["staging"], etag="")
    assert_whole(lake, await go_on(lake, source, journal))


async def test_of_two_deliveries_one_gives_way_and_the_bytes_are_whole(lake: Lake) -> None:
    journal = Journal()
    assert await go_on(lake, Source(), journal, hands_back=True) is None
    parked = dict(lake.folder.parked)
    lake.folder.parked.clear()
    assert await go_on(lake, Source(), journal, hands_back=True) is None
    lake.folder.parked.clear()
    lake.folder.parked.update(parked)
    assert_whole(lake, await go_on(lake, Source(), journal))


@pytest.mark.parametrize(("operation", "times"), [("flush", 1), ("flush", 3), ("rename", 1), ("append", 2)])
@pytest.mark.parametrize("fault", ["reset_after", "reset_before", "server_error"])
async def test_answers_that_are_lost(lake: Lake, operation: str, times: int, fault: str) -> None:
    lake.faults({"operation": operation, "fault": fault, "times": times})
    assert_whole(lake, await go_on(lake, Source(), Journal()))


async def test_what_stands_in_the_way_is_known_before_the_first_byte(lake: Lake) -> None:
    await lake.folder.create("d/large", Content(b"somebody's"))
    with pytest.raises(TargetConflict) as caught:
        await go_on(lake, Source(), Journal())
    assert caught.value.code == "target_exists"
    assert sent(lake) == 0


async def test_what_appears_in_the_way_meanwhile_is_not_written_over(lake: Lake) -> None:
    journal = Journal()
    assert await go_on(lake, Source(), journal, hands_back=True) is None
    await lake.folder.create("d/large", Content(b"somebody's"))
    with pytest.raises(ItemError):
        await go_on(lake, Source(), journal)


async def test_only_over_the_very_file(lake: Lake) -> None:
    was = await lake.folder.create("d/large", Content(b"ours"))
    journal = Journal()
    assert await go_on(lake, Source(), journal, new=False, hands_back=True, only_over=was.etag) is None
    await lake.folder.replace("d/large", Content(b"somebody's"))
    with pytest.raises((TargetConflict, TransientError)):
        await go_on(lake, Source(), journal, new=False, only_over=was.etag)
    assert lake.on_disk() == {"d/large": b"somebody's"}


async def test_a_staged_file_that_is_removed_before_it_is_put_in_place_begins_anew(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, journal = Source(), Journal()
    put_in_place = lake.folder.put_in_place

    async def removed_before(staging: str, *rest: Any, **options: Any) -> str:
        monkeypatch.setattr(lake.folder, "put_in_place", put_in_place)
        await lake.folder.delete(staging, etag="")
        return await put_in_place(staging, *rest, **options)

    monkeypatch.setattr(lake.folder, "put_in_place", removed_before)
    with pytest.raises(TransientError) as caught:
        await go_on(lake, source, journal)
    assert caught.value.code == "staging_gone"
    assert_whole(lake, await go_on(lake, source, journal))


async def test_no_more_content_is_held_open_than_is_likely_to_be_taken_up(lake: Lake) -> None:
    """Another process may have gone on with an upload; what was open for it here is closed some day."""
    opened: list[Content] = []
    closed: list[Content] = []

    class Watched(Content):
        async def close(self) -> None:
            closed.append(self)

    async def open_watched() -> Content:
        opened.append(Watched(DATA[: 2 * SMALL_BLOCK_BYTES]))
        return opened[-1]

    for number in range(PARKED + 2):
        handed_back = await lake.folder.upload_long(
            f"d/large{number}", open_watched, Journal(), new=True, part_bytes=SMALL_BLOCK_BYTES, is_over=lambda: True
        )
        assert handed_back is None
    assert closed == opened[:2], "those that wait for longest"
    await lake.folder.close_parked()
    assert closed == opened
    assert lake.folder.parked == {}
