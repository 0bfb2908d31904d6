"""Make what was extracted visible, and then remember how far the source has been read.

Order: every slice is there and was compared with the source -> one commit in the lake, which carries the cursor with it
-> the cursor in the run store -> what is left of attempts that were cut short is deleted. Where the worker is lost
between the second and the third, the next run takes the cursor from the lake. A commit that is carried out twice is
known again by its number and its plan's token: of two deliveries at once one does the work, the other finds it done.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from shared.engine.sql import quality, sums
from shared.engine.sql.cursor import Cursor, load_cursor, save_cursor
from shared.engine.sql.extract import Cancelled
from shared.engine.sql.reach import is_ahead
from shared.engine.sql.run import SqlRun, columns_document, columns_of, cursor_key, part_of, shape_of
from shared.engine.sql.ties import gathered, load_seen
from shared.errors import MigrationError, Unsupported
from shared.ports.tables import KeyRange, LakeTable, Leftovers, PartFile, TableCommit


async def commit_table(run: SqlRun, target: str, table: int, turn: int) -> dict[str, Any]:
    """Idempotent.

    Returns:
        What the commit did, for the record.

    Raises:
        TargetConflict: somebody else changed the table in the lake.
        Cancelled: another delivery is clearing the files away, since the run was cancelled or the table has failed.
    """
    records, entry = run.records, await run.records.entry(table)
    key = cursor_key(run.job, target, entry)
    done = await records.done(table, turn)
    decided = await records.decided(table, turn)
    if done is not None:
        await _save_cursor(run, key, decided, Cursor(**done["cursor"]))
        return done
    count = 1 if decided["moments"] == "snapshot" else len(decided["ranges"])
    token = decided["token"]
    documents = [await records.slice_result(table, turn, number, token) for number in range(count)]
    if None in documents:
        raise LookupError(f"slice {documents.index(None)} of table {table} of {records.run} is gone from the run store")
    found = [document for document in documents if document is not None]
    slices = [one for document in found for one in document["slices"]]
    upto = found[0]["upto"]
    lake = run.lake(entry["path"])
    parts = _needed([part_of(part) for one in slices for part in one["parts"]])
    # An empty commit for every run without changes would only cost readers time.
    is_empty = decided["load"] == "increment" and not any(one["rows"] for one in slices)
    # Looked for as long as nothing of what comes after this commit can be among it.
    left_over = await lake.leftovers([] if is_empty else [part.path for part in parts])
    kept_apart = await _KeptApart.looked_for(run, entry["path"], decided, slices)
    if (done := await records.done(table, turn)) is not None:
        return done
    verdict = await _verdict(run, table, turn, decided, found, slices)
    quality.raise_if_failed(verdict)
    has_files = not is_empty or (kept_apart is not None and kept_apart.parts)
    if has_files and await records.end(table, turn, token, "commit") == "clear":
        raise Cancelled
    if kept_apart is not None:
        # Before the table itself: a row that is in neither would be lost without a trace.
        await kept_apart.commit(run, decided)
    try:
        cursor = await _cursor(run, decided, slices, upto, key)
    except LookupError:
        # Another delivery of this commit, which is through with it, has deleted digests of rows before it.
        done = await records.done(table, turn)
        if done is None:
            raise
        return done
    done = _result(decided, slices, upto, cursor)
    done |= {"quarantined": verdict.get("quarantined", 0), "quality": verdict["verdict"]}
    if is_empty:
        cursor = replace(cursor, number=decided["cursor"]["number"])
    else:
        committed = await lake.commit(
            TableCommit(
                number=decided["number"],
                run=records.run,
                disposition=decided["written_as"],
                deletes=decided["deletes"],
                columns=columns_of(decided["columns"]),
                key=tuple(decided["key"]),
                parts=tuple(parts),
                position=cursor.document(),
                # A row that is kept apart is not among the parts either, and was not deleted.
                whole_key_range=None if verdict.get("quarantined") else _whole(decided),
                only_new=decided["only_new"],
                token=token,
            )
        )
        if committed.already:
            # Whoever made it may have been listed above when it was not there yet.
            left_over = Leftovers()
        done |= {
            "version": committed.version, "inserted": committed.inserted, "updated": committed.updated,
            "deleted": committed.deleted, "files": len(parts), "bytes": sum(part.size_bytes for part in parts),
        }  # fmt: skip
    done["cursor"] = cursor.document()
    # First, since digests of rows before this commit are deleted with the cursor that refers to them.
    await records.put_done(table, turn, done)
    await _save_cursor(run, key, decided, cursor)
    with suppress(MigrationError):
        # No reader sees what cannot be deleted now; it goes with the next run.
        await lake.remove(left_over)
    return done


async def _verdict(
    run: SqlRun, table: int, turn: int, decided: dict[str, Any], found: list[dict[str, Any]],
    slices: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    rules = quality.from_documents(decided["rules"])
    ages = {name: age for document in found for name, age in document["ages"].items()}
    verdict = quality.verdict_of(rules, [one["quality"] for one in slices], ages)
    merged = decided["written_as"] in ("merge", "history")
    warnings = quality.warnings_of(verdict, merged=merged, finds_deleted=_whole(decided) is not None)
    await run.records.put_quality(table, turn, {**verdict, "warnings": warnings})
    return verdict


@dataclass(frozen=True, slots=True)
class _KeptApart:
    """Quarantined rows of a turn, and what is left of attempts to write some."""

    lake: LakeTable
    parts: list[PartFile]
    left_over: Leftovers

    @classmethod
    async def looked_for(
        cls, run: SqlRun, path: str, decided: dict[str, Any], slices: list[dict[str, Any]]
    ) -> "_KeptApart | None":
        if decided["quarantine_number"] < 0:
            return None
        lake = run.quarantine(path)
        parts = [part_of(part) for one in slices for part in one["quarantined"]]
        return cls(lake, parts, await lake.leftovers([part.path for part in parts]))

    async def commit(self, run: SqlRun, decided: dict[str, Any]) -> None:
        if self.parts:
            committed = await self.lake.commit(
                TableCommit(
                    number=decided["quarantine_number"],
                    run=run.records.run,
                    disposition="append",
                    deletes="ignore",
                    columns=quality.quarantine_columns(shape_of(decided["shape"]).lake_columns),
                    key=(),
                    parts=tuple(self.parts),
                    position={},
                    token=decided["token"],
                )
            )
            if committed.already:
                return
        with suppress(MigrationError):
            await self.lake.remove(self.left_over)


def _needed(parts: list[PartFile]) -> list[PartFile]:
    """Files with rows; one without, where there is no other, so that readers meet the columns."""
    return [part for part in parts if part.rows] or parts[:1]


def _whole(decided: dict[str, Any]) -> KeyRange | None:
    """Where all rows were read and are merged, a row that is in the lake alone was deleted."""
    is_merged = decided["written_as"] in ("merge", "history")
    if decided["load"] != "full" or not is_merged or decided["deletes"] == "ignore":
        return None
    return KeyRange(decided["key"][0], None, None, nulls=True)


def _result(decided: dict[str, Any], slices: list[dict[str, Any]], upto: str | None, cursor: Cursor) -> dict[str, Any]:
    """What a turn did, for the record."""
    before = decided["cursor"]
    found: dict[str, Any] = {
        "load": decided["load"], "from": before["position"] if before and decided["load"] == "increment" else None,
        "to": cursor.position, "rows": sum(one["rows"] for one in slices), "read": sum(one["read"] for one in slices),
        "repeated": sum(one["repeated"] for one in slices), "slices": len(decided["ranges"]), "version": None,
        "inserted": 0, "updated": 0, "deleted": 0, "files": 0, "bytes": 0,
    }  # fmt: skip
    for side in ("source", "target"):
        summed = [sums.from_document(one[side]) for one in slices if one[side] is not None]
        found[side] = sums.compact(sums.together(summed)) if len(summed) == len(slices) else None
    return found


async def _cursor(
    run: SqlRun, decided: dict[str, Any], slices: list[dict[str, Any]], upto: str | None, key: str
) -> Cursor:
    """What is to be remembered; its digests are written before the commit that refers to them.

    Raises:
        Unsupported: code ``position_expired``: the source is behind what was read before, so that what it did not tell
            says nothing.
    """
    store, before = run.records.store, decided["cursor"]
    after = before["position"] if decided["load"] == "increment" else None
    if upto is not None and not is_ahead(decided["change"], upto, after):
        raise Unsupported(
            f"the source is at {upto}, behind {after}, which was read before; the next run reads the table anew; where "
            "the setting leads to several replicas, let it lead to one",
            code="position_expired",
        )
    stays = upto is None
    seen_key = ""
    if decided["remembers_ties"]:
        found = [await load_seen(store, one["seen"]) for one in slices]
        known = decided["load"] == "increment" and before is not None and before["seen"]
        earlier = await load_seen(store, before["seen"]) if known else None
        seen, stays = await asyncio.to_thread(gathered, found, decided["lookback_s"], earlier)
        seen_key = f"{key.removesuffix('.json')}-{decided['token']}.seen"
        await store.put(seen_key, await asyncio.to_thread(seen.dump))
    shape = shape_of(decided["shape"])
    return Cursor(
        number=decided["number"],
        identity=run.facts.identity,
        change=decided["change"],
        column=decided["column"],
        position=before["position"] if stays and before and decided["load"] == "increment" else upto,
        capture=decided["capture"],
        key=list(shape.key),
        columns=columns_document(shape.lake_columns),
        seen=seen_key,
        run=run.records.run,
        measured=_measured(run, decided, slices) or (before["measured"] if before else {}),
        # Where the database no longer says, what it said before is still to be compared with.
        fork=run.facts.fork or (before or {}).get("fork", ""),
    )


async def _save_cursor(run: SqlRun, key: str, decided: dict[str, Any], cursor: Cursor) -> None:
    """Unless a later commit has saved its own by now, whose digests would go with it: this delivery may be late."""
    stored = await load_cursor(run.records.store, key)
    if stored is None or [stored.run, stored.number] in (decided["stored"], [cursor.run, cursor.number]):
        await save_cursor(run.records.store, key, cursor)


def _measured(run: SqlRun, decided: dict[str, Any], slices: list[dict[str, Any]]) -> dict[str, float]:
    rows = sum(one["rows"] for one in slices)
    seconds = (run.clock() - datetime.fromisoformat(decided["planned_at"])).total_seconds()
    if decided["load"] != "full" or not rows or seconds <= 0:
        return {}
    size_bytes = sum(part["size_bytes"] for one in slices for part in one["parts"])
    return {"rows": rows, "lake_bytes": size_bytes, "seconds": seconds, "parallel": decided["parallel"]}
