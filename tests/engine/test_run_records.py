"""A run's records read as a whole: one for each item, in order, the last word last."""

from __future__ import annotations

from shared.engine.run_records import RunRecords
from shared.names import page_name
from tests.support.runs import memory_store, put_page, record


async def states(records: RunRecords) -> list[tuple[str, str]]:
    return [(one["path"], one["status"]) async for one in records.records()]


async def test_every_kind_of_source_of_a_record() -> None:
    records = RunRecords(memory_store(), "run")
    await put_page(records, "p00001", [record("b"), record("d", "retrying", error_code="throttled"), record("e")])
    await records.put_batch("p00001", 1, [
        {"path": "f", "size_bytes": 1, "source_version": "v", "action": "create", "etag": ""}])  # fmt: skip
    await records.put_results("p00001", "settled", [record("a", "skipped"), record("c", "failed")])
    await put_page(records, "p00002", [record("g")])
    assert await states(records) == [
        ("a", "skipped"), ("b", "uploaded"), ("c", "failed"), ("d", "failed"), ("e", "uploaded"), ("f", "planned"),
        ("g", "uploaded"),
    ]  # fmt: skip


async def test_later_rounds_overrule_the_first() -> None:
    records = RunRecords(memory_store(), "run")
    await put_page(records, "p00001", [record("a", "failed"), record("b", "failed"), record("c")])
    await put_page(records, "p00002", [record("d", "failed")])
    await put_page(records, "r2p00001", [record("a"), record("b", "failed", error_code="again"), record("d", "failed")])
    await put_page(records, "r3p00001", [record("b"), record("d", "retrying")])
    assert await states(records) == [("a", "uploaded"), ("b", "uploaded"), ("c", "uploaded"), ("d", "failed")]


async def test_pages_are_in_the_order_of_their_numbers() -> None:
    records = RunRecords(memory_store(), "run")
    wanted = [page_name(number, 1) for number in (9, 10, 99_999, 100_000)] + [
        page_name(number, round_number) for round_number in (2, 10) for number in (1, 2, 100_000)
    ]
    for number, page in enumerate(reversed(wanted)):
        await put_page(records, page, [record(f"f{len(wanted) - number:02d}")])
    assert await records.pages() == wanted


async def test_final_pages_go_on_after_any_page() -> None:
    records = RunRecords(memory_store(), "run")
    names = [page_name(number, 1) for number in (1, 2, 3, 99_999, 100_000)]
    for number, page in enumerate(names):
        await put_page(records, page, [record(f"f{number}")])
    await put_page(records, "r2p00001", [record("f2", "failed")])
    for position, after in enumerate([None, *names]):
        found = [(page, rows) async for page, rows in records.final_pages(after)]
        assert [page for page, _ in found] == names[position:]


async def test_runs_with_like_names_are_apart() -> None:
    store = memory_store()
    await put_page(RunRecords(store, "run-1"), "p00001", [record("a")])
    await put_page(RunRecords(store, "run-1-2"), "p00001", [record("b")])
    assert await states(RunRecords(store, "run-1")) == [("a", "uploaded")]


async def test_cancelled_is_a_mark() -> None:
    records = RunRecords(memory_store(), "run")
    assert not await records.cancelled()
    await records.store.put(records.key("cancel"), b"")
    assert await records.cancelled()


async def test_names_that_are_not_utf8_pass_through() -> None:
    records = RunRecords(memory_store(), "run")
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    await put_page(records, "p00001", [record(name, "failed")])
    assert await states(records) == [(name, "failed")]
