"""Reading a source that does not list itself in the order of paths into a catalog that does.

A container lists itself, in its own order: each stretch becomes a sorted part. A drive tells changes, by ids and names
without paths: they are laid over what the job knew of the drive, paths are made of that, and the outcome is compared
with the ledger, so that what was renamed is told from what is new.

::

    runs/<run>/source-<n>/state.json      how far the reading is; what a repeat goes on from
    runs/<run>/source-<n>/feed/...        a drive's changes as they came
    runs/<run>/source-<n>/rows/...        the catalog
    jobs/<job>/drives/<source>/...        what the job knows of the drive, with the token for its next changes
"""

import asyncio
import hashlib
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from shared.engine.catalog import Part, PartWriter, Row, decode_index, encode_index, read_part
from shared.engine.files_run import FilesRun
from shared.engine.ledger import open_ledger
from shared.engine.run_records import RunRecords
from shared.engine.sources import DriveTree, ListedTree, SourcePart, row_of, rows_key
from shared.errors import SourceMissing
from shared.model.records import dump_lines, load_lines
from shared.policy import drive_tree
from shared.policy.paths import sort_key, too_long_reason, unmappable_reason
from shared.ports import Moved, RunStore, SourceItem

# An activity hands back its cursor after so long, far below any function timeout.
_BUDGET_S = 60.0
_LIST_ITEMS = 5_000
_CHUNK_ITEMS = 25_000
_AT_ONCE = 5_000


async def index_source(run: FilesRun, number: int) -> tuple[int, bool]:
    """Read on, for a minute at most or until somebody cancels; once all is read, write the catalog.

    Idempotent: what a killed call has read and not noted down is read again.

    Args:
        run: The run.
        number: Of the source.

    Returns:
        Items read so far, and whether the catalog is written.

    Raises:
        SourceMissing: a mirror would delete everything, since the source has nothing any more.
    """
    part = run.source.parts[number]
    name = f"source-{number}/state.json"
    state = await run.records.load(name)
    if state is None:
        state = {"cursor": None, "chunks": 0, "items": 0, "epoch": 0, "is_read": False, "is_fresh": True, "token": None}
        if isinstance(part.tree, DriveTree) and run.job.mode == "incremental":
            known = await _known(run, number)
            if known is not None:
                state |= {"cursor": json.loads(known)["token"], "is_fresh": False}
    if state.get("is_arranged"):
        return state["items"], True
    if not state["is_read"]:
        if isinstance(part.tree, DriveTree):
            await _read_feed(run.records, number, part.tree, state)
        elif isinstance(part.tree, ListedTree):
            await _read_listing(run.records, number, part.tree, state)
        await run.records.save(name, state)
        return state["items"], False
    if isinstance(part.tree, DriveTree):
        with tempfile.TemporaryDirectory(prefix="onelake-migration-") as folder:
            await _arrange(run, number, part, state, Path(folder) / "drive.sqlite")
    else:
        await _join_parts(run.records, number, state)
    state["is_arranged"] = True
    await run.records.save(name, state)
    return state["items"], True


async def commit_drives(records: RunRecords) -> None:
    """Let the job's next run go on from what this one read. Idempotent; what was read only in part changes nothing."""
    store = records.store
    prepared = await records.load("prepared.json") or {}
    for number in range(len(prepared.get("sources", []))):
        state = await records.load(f"source-{number}/state.json") or {}
        home = state.get("home")
        if home is None or not state.get("is_arranged"):
            continue
        index = await store.get(f"{home}/{records.run}.json")
        if index is None:
            continue
        await store.put(f"{home}/index.json", index)
        named = {part.key for part in decode_index(index)} | {f"{home}/index.json", f"{home}/{records.run}.json"}
        await store.delete([old for old in await store.list(home) if old not in named])


# -- reading -----------------------------------------------------------------------------------------------------------


async def _read_listing(records: RunRecords, number: int, tree: ListedTree, state: dict[str, Any]) -> None:
    started_s = time.monotonic()
    while True:
        rows: list[Row] = []
        while len(rows) < _CHUNK_ITEMS:
            page = await tree.listing.list_page(state["cursor"], _LIST_ITEMS)
            rows += [row_of(item) for item in page.items]
            state["cursor"] = page.cursor
            if page.cursor is None or time.monotonic() - started_s > _BUDGET_S:
                break
        rows.sort(key=lambda row: sort_key(row["path"]))
        folder = records.key(f"{rows_key(number)}/c{state['chunks']:05d}")
        writer = PartWriter(records.store, f"{folder}/part")
        for row in rows:
            await writer.add(row)
        await writer.flush()
        await records.store.put(f"{folder}/index.json", encode_index(writer.parts))
        state["chunks"] += 1
        state["items"] += len(rows)
        state["is_read"] = state["cursor"] is None
        if state["is_read"] or time.monotonic() - started_s > _BUDGET_S or await records.cancelled():
            return


async def _join_parts(records: RunRecords, number: int, state: dict[str, Any]) -> None:
    parts: list[Part] = []
    for chunk in range(state["chunks"]):
        key = records.key(f"{rows_key(number)}/c{chunk:05d}/index.json")
        parts += decode_index(await records.store.get(key))
    await records.store.put(records.key(f"{rows_key(number)}/index.json"), encode_index(parts))


async def _read_feed(records: RunRecords, number: int, tree: DriveTree, state: dict[str, Any]) -> None:
    started_s = time.monotonic()
    items: list[dict[str, Any]] = []

    async def keep() -> None:
        key = f"source-{number}/feed/e{state['epoch']:03d}-c{state['chunks']:05d}.jsonl"
        await records.store.put(records.key(key), dump_lines(items))
        state["chunks"] += 1
        state["items"] += len(items)
        items.clear()

    while True:
        page = await tree.feed.page(state["cursor"])
        state["cursor"] = page.cursor
        if page.reset:
            # The service has forgotten the token: what this walk has shown so far is void, and a whole one follows.
            items.clear()
            state |= {"chunks": 0, "items": 0, "epoch": state["epoch"] + 1, "is_fresh": True}
            continue
        items += [asdict(item) for item in page.items]
        if page.token is not None:
            state |= {"is_read": True, "token": page.token}
        # Between two pages, since a walk whose service asks to slow down takes its time.
        out_of_time = time.monotonic() - started_s > _BUDGET_S or await records.cancelled()
        if state["is_read"] or out_of_time or len(items) >= _CHUNK_ITEMS:
            await keep()
        if state["is_read"] or out_of_time:
            return


# -- a drive's catalog -------------------------------------------------------------------------------------------------


def _home(run: FilesRun, number: int) -> str:
    """Where the job keeps what it knows of a drive; another drive, folder or target has another place."""
    about = f"{run.pair}\x00{run.identities[number]}\x00{run.source.parts[number].sub}"
    return f"jobs/{run.job.name}/drives/{hashlib.sha256(about.encode()).hexdigest()[:16]}"


async def _known(run: FilesRun, number: int) -> bytes | None:
    return await run.records.store.get(f"{_home(run, number)}/index.json")


_TABLES = """
create table item (id text primary key, parent_id text, name text, kind text, rest text, told integer) without rowid;
create table ledger (path text primary key, id text, ref text, version text, size_bytes integer, etag text, hash text,
                     own integer) without rowid;
create table live (key text primary key, path text, id text, version text, told integer, row text) without rowid;
create table placed (id text primary key) without rowid;
create index ledger_id on ledger (id);
create index live_path on live (path);
create index live_id on live (id);
"""


async def _arrange(run: FilesRun, number: int, part: SourcePart, state: dict[str, Any], file: Path) -> None:
    """Lay the feed over what was known, and write what the plan shall walk.

    In a database on the worker's own disk, since a library of a million items is too much for its memory. It holds
    names and sizes, no content, and is gone when this returns.
    """
    assert isinstance(part.tree, DriveTree)
    store, records = run.records.store, run.records
    known = None if state["is_fresh"] else await _known(run, number)
    database = await asyncio.to_thread(_open, file)
    try:
        for old in decode_index(known):
            await asyncio.to_thread(_insert_known, database, await read_part(store, old))
        for chunk in range(state["chunks"]):
            key = records.key(f"source-{number}/feed/e{state['epoch']:03d}-c{chunk:05d}.jsonl")
            await asyncio.to_thread(_apply_feed, database, load_lines(await store.get(key) or b""))
        ledger = await open_ledger(store, run.job.name, run.pair)
        for old in ledger.parts:
            await asyncio.to_thread(_insert_ledger, database, await read_part(store, old), part.sub)
        live = await asyncio.to_thread(_place, database, await part.tree.feed.start_id())
        was_more = database.execute("select exists (select 1 from ledger)").fetchone()[0]
        if not live and part.tree.tells_changes and run.job.deleted == "mirror" and was_more:
            field = run.job.field_of(number)
            raise SourceMissing(
                "the library is empty, but this job has moved files from it before; deleted: mirror would delete them "
                f"all. Check the library and the permissions. If {field} is meant to be empty: delete what the job has "
                f"moved from it in the lake, and the job's memory in the run store (jobs/{run.job.name}/ledger and "
                "drives)",
                code="source_empty",
                subject=field,
            )
        if part.tree.tells_changes:
            rows = _changes(database, lambda path: _is_taken(run, part.sub, path), is_fresh=state["is_fresh"])
        else:
            rows = _whole(database)
        parts = await _write_rows(store, records.key(f"{rows_key(number)}/part"), rows)
        await store.put(records.key(f"{rows_key(number)}/index.json"), encode_index(parts))
        home = _home(run, number)
        parts = await _write_rows(store, f"{home}/{records.run}", _items(database))
        await store.put(f"{home}/{records.run}.json", encode_index(parts, token=state["token"]))
        state["home"] = home
    finally:
        await asyncio.to_thread(database.close)


async def _write_rows(store: RunStore, prefix: str, rows: Iterator[Row]) -> list[Part]:
    writer = PartWriter(store, prefix)
    while batch := await asyncio.to_thread(lambda: list(islice(rows, _AT_ONCE))):
        for row in batch:
            await writer.add(row)
    await writer.flush()
    return writer.parts


def _open(file: Path) -> sqlite3.Connection:
    # Used by one thread after the other.
    database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
    # Nobody reads it after a crash.
    database.executescript(f"pragma journal_mode=off; pragma synchronous=off; {_TABLES}")
    return database


def _insert_known(database: sqlite3.Connection, rows: list[Row]) -> None:
    database.execute("begin")
    database.executemany(
        "insert or replace into item values (?, ?, ?, ?, ?, 0)",
        ((row["path"], row["parent_id"], row["name"], row["kind"], row["rest"]) for row in rows),
    )
    database.execute("commit")


def _apply_feed(database: sqlite3.Connection, items: list[dict[str, Any]]) -> None:
    """The last word on an item counts. What is gone keeps the name and parent that it had: the feed leaves them out.

    Names are kept as JSON, since one may hold half a surrogate pair, which neither SQLite nor Parquet takes.
    """
    database.execute("begin")
    for item in items:
        item_id, parent_id, kind = item.pop("id"), item.pop("parent_id"), item.pop("kind")
        name = json.dumps(told) if (told := item.pop("name")) else ""
        if kind == "gone":
            before = database.execute("select parent_id, name from item where id = ?", (item_id,)).fetchone()
            if before is not None:
                parent_id, name = parent_id or before[0], name or before[1]
        database.execute(
            "insert or replace into item values (?, ?, ?, ?, ?, 1)", (item_id, parent_id, name, kind, json.dumps(item))
        )
    database.execute("commit")


def _insert_ledger(database: sqlite3.Connection, rows: list[Row], sub: str) -> None:
    prefix = f"{sub}/" if sub else ""
    database.execute("begin")
    database.executemany("insert or replace into ledger values (?, ?, ?, ?, ?, ?, ?, ?)", (
        (row["path"][len(prefix) :], row.get("source_id") or "", row.get("source_ref") or "", row["source_version"],
         row["size_bytes"], row["etag"], row["hash"], bool(row["own"]))
        for row in rows if row["path"].startswith(prefix)
    ))  # fmt: skip
    database.execute("commit")


def _place(database: sqlite3.Connection, start_id: str | None) -> int:
    """Fill ``live`` with what lies below the start folder, by its path in the lake; how many items there are."""
    known = {
        item_id: drive_tree.Node(parent_id, _named(name), kind)
        for item_id, parent_id, name, kind in database.execute(
            "select id, parent_id, name, kind from item where kind <> 'file'"
        )
    }
    tree = drive_tree.DriveTree(known, start_id)
    items = database.execute("select id, parent_id, name, kind, rest, told from item where kind in ('file', 'other')")
    count = 0
    database.execute("begin")
    for item_id, parent_id, name, kind, rest, told in items:
        # Files are known one at a time: nothing lies below them, and there are too many of them.
        known[item_id] = drive_tree.Node(parent_id, _named(name), kind)
        place = tree.place(item_id)
        if kind == "file":
            del known[item_id]
        is_known = place.where not in ("gone", "orphan", "cycle")
        if is_known:
            database.execute("insert into placed values (?)", (item_id,))
        if place.where in ("gone", "outside") or not place.path:
            continue
        row = row_of(_source_item(item_id, place, json.loads(rest)))
        database.execute(
            # What is only guessed to lie there takes nobody's place.
            f"insert or {'replace' if is_known else 'ignore'} into live values (?, ?, ?, ?, ?, ?)",  # noqa: S608
            (sort_key(row["path"]), row["path"], item_id, row["version"], told, json.dumps(row)),
        )
        count += 1
    database.execute("commit")
    return count


def _named(name: str) -> str:
    return json.loads(name) if name else ""


def _source_item(item_id: str, place: drive_tree.Place, rest: dict[str, Any]) -> SourceItem:
    problem, skip = rest["problem"], rest["skip"]
    if place.where == "package":
        problem, skip = ("package_not_a_file", "is a part of a notebook, which is no file by itself"), True
    elif place.where in ("orphan", "cycle"):
        problem, skip = (
            ("unplaced_item", "the library does not tell in which folder it lies; a full run asks anew"),
            False,
        )
    return SourceItem(
        place.path, rest["size_bytes"], rest["version"], tuple(problem) if problem else None, skip, item_id,
        rest["ref"], rest["facts"],
    )  # fmt: skip


def _whole(database: sqlite3.Connection) -> Iterator[Row]:
    """All that is there."""
    for (row,) in database.execute("select row from live order by key"):
        yield json.loads(row)


# Files of the lake, written by this job, whose item has another path now that is free: they can be renamed. Where an
# item has several, the last is the one that counts.
_RENAMED = """
    select ledger.path as old, live.path as new, live.version = ledger.version as same, ledger.etag, ledger.hash,
           ledger.size_bytes, live.row
    from ledger join live on live.id = ledger.id
    where ledger.id <> '' and ledger.own and ledger.hash <> '' and ledger.etag <> '' and ledger.path <> live.path
      and not exists (select 1 from live other where other.path = ledger.path)
      and not exists (select 1 from ledger other where other.path = live.path)
    order by same, old
"""
# What is gone from its path and known to be elsewhere needs no second look at the drive, which still has the item.
_DIFFERING = """
    select live.key as key, live.row, live.told, null, null from live left join ledger on ledger.path = live.path
    where ledger.path is null or ledger.version <> live.version
    union all
    select replace(ledger.path, '/', char(0)), null, null, ledger.path,
           case when exists (select 1 from placed where placed.id = ledger.id) then '' else ledger.ref end
    from ledger left join live on live.path = ledger.path where live.path is null
    order by key
"""


def _is_taken(run: FilesRun, sub: str, path: str) -> bool:
    """Whether the plan moves what has this path, rather than leave it out or report it."""
    full = f"{sub}/{path}" if sub else path
    return run.wanted(full) and not unmappable_reason(full) and not too_long_reason(run.target(full))


def _changes(database: sqlite3.Connection, is_taken: Callable[[str], bool], *, is_fresh: bool) -> Iterator[Row]:
    """What the lake does not have as it should be, and what the drive has lost, in path order.

    What is skipped for what it is shows up when the drive tells of it, not in every run.
    """
    moved: dict[str, Moved] = {}
    for old, new, same, etag, md5, size_bytes, row in database.execute(_RENAMED):
        # A file cannot go into a folder that stands where it stood itself.
        crossing = new.startswith(f"{old}/") or old.startswith(f"{new}/")
        if not crossing and is_taken(new) and not json.loads(row)["problem_code"]:
            moved[new] = Moved(old, etag, md5, size_bytes, bool(same))
    left = {one.path for one in moved.values()}
    for _, text, told, lost, ref in database.execute(_DIFFERING):
        if text is None:
            if lost not in left:
                yield {**row_of(SourceItem("", 0, "", ref=ref)), "path": lost, "gone": True}
            continue
        row = json.loads(text)
        if row["skip"] and not told and not is_fresh:
            continue
        if row["path"] in moved:
            row["moved"] = json.dumps(asdict(moved[row["path"]]))
        yield row


def _items(database: sqlite3.Connection) -> Iterator[Row]:
    """What is known of the drive now. Also what is gone: its children are not told, nor told again when it returns."""
    for item_id, parent_id, name, kind, rest in database.execute(
        "select id, parent_id, name, kind, rest from item order by id"
    ):
        yield {"path": item_id, "parent_id": parent_id, "name": name, "kind": kind, "rest": rest}
