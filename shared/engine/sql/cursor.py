"""How far a table has been read: kept in the run store, and with each commit in the lake.

The lake has the last word. A commit whose cursor was not saved any more, because the worker was lost in between, says
itself what the cursor is to be; a cursor of a commit that the lake does not know is void.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from shared.ports import RunStore
from shared.ports.tables import LakeTableState

_MEASURED = {"rows", "lake_bytes", "seconds", "parallel"}


@dataclass(frozen=True, slots=True)
class Cursor:
    """What a job has made of a table.

    Attributes:
        number: Of the last commit.
        identity: Of the database that the position belongs to.
        change: How changes are told, None for full loads.
        column: Of a watermark or rowversion.
        position: The upper bound of what was read; None where there were no rows.
        capture: The CDC capture instance; of change tracking, what it tracked with.
        key: By which rows were merged.
        columns: Lake columns of the source as it was then, under the source's names.
        seen: Where the digests of rows at the boundary lie in the run store; empty where there are none.
        run: That made the commit.
        measured: Rows, bytes in the lake, seconds and streams of the last full load.
        fork: Of the database, as far as it said; see ``ports.DatabaseFacts``.
    """

    number: int
    identity: str
    change: str | None
    column: str | None
    position: str | None
    capture: str | None
    key: list[str]
    columns: list[list[Any]]
    seen: str
    run: str
    measured: dict[str, float] = field(default_factory=dict)
    fork: str = ""

    def document(self) -> dict[str, Any]:
        return asdict(self)


async def load_cursor(store: RunStore, key: str) -> Cursor | None:
    """None where there is none, or none that can be read: what is in the lake says it then."""
    data = await store.get(key)
    try:
        return _read(json.loads(data)) if data is not None else None
    except ValueError:
        return None


async def save_cursor(store: RunStore, key: str, cursor: Cursor) -> None:
    """Write it, then delete digests that belong to commits before it."""
    await store.put(key, json.dumps(cursor.document(), indent=1).encode())
    stem = key.removesuffix(".json")
    folder = key.rpartition("/")[0]
    old = [one for one in await store.list(folder) if one.startswith(f"{stem}-") and one != cursor.seen]
    if old:
        await store.delete(old)


def mended(stored: Cursor | None, state: LakeTableState) -> tuple[Cursor | None, str]:
    """The cursor that goes with what is in the lake, and why the stored one is void where it is."""
    if state.exists and state.position is not None and state.applied > (stored.number if stored else -1):
        found = _read(state.position)
        return found, "" if found else "what the last commit in the lake says of it cannot be read"
    if stored is None:
        return None, ""
    if not state.exists:
        return None, "the table is no longer in the lake"
    if state.applied < stored.number:
        return None, "the table in the lake is not the one that this job has written"
    return stored, ""


def _read(document: Any) -> Cursor | None:
    """None for what is no cursor: somebody may have edited it."""
    try:
        cursor = Cursor(**document)
    except TypeError:
        return None
    texts = [cursor.identity, cursor.seen, cursor.run, cursor.fork]
    texts += [one for one in (cursor.change, cursor.column, cursor.position, cursor.capture) if one is not None]
    is_sound = (
        isinstance(cursor.number, int)
        and isinstance(cursor.key, list)
        and all(isinstance(one, str) for one in [*texts, *cursor.key])
        and isinstance(cursor.columns, list)
        and all(isinstance(one, list) and [type(part) for part in one] == [str, str, bool] for one in cursor.columns)
        and isinstance(cursor.measured, dict)
        and (not cursor.measured or cursor.measured.keys() >= _MEASURED)
        and all(isinstance(one, int | float) for one in cursor.measured.values())
    )
    return cursor if is_sound else None
