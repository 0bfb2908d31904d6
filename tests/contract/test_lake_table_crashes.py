"""Random commits that break off between any two calls, against a model in plain Python."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.clients import http
from shared.clients.lake_tables import log
from shared.errors import MigrationError
from shared.ports.tables import LakeColumn
from tests.support.emulated import Lake, MakeOneLake
from tests.support.lake_tables import EmulatedTable, Row, discarded

COLUMNS = (LakeColumn("id", "int64"), LakeColumn("text", "string"))
CHANGES = (
    *COLUMNS,
    LakeColumn("_operation", "string"),
    LakeColumn("_position", "string"),
    LakeColumn("_order", "int64"),
)
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
IDS = st.none() | st.integers(0, 8)
TEXTS = st.none() | st.sampled_from(["a", "b", "\u00e9" * 40])
CHANGE = st.tuples(st.sampled_from(["insert", "update", "upsert", "delete"]), IDS, TEXTS)
ROWS = st.lists(st.tuples(IDS, TEXTS), max_size=6)
BREAK_OFF = st.none() | st.integers(0, 60)


@st.composite
def loads(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "disposition": draw(st.sampled_from(["append", "replace"])),
        "rows": draw(ROWS),
        "break_off": draw(BREAK_OFF),
        "anew": draw(st.booleans()),
    }


@st.composite
def merges(draw: st.DrawFn, disposition: str = "merge") -> dict[str, Any]:
    return {
        "disposition": disposition,
        "deletes": draw(st.sampled_from(["soft", "hard", "ignore"])),
        "changes": draw(st.lists(CHANGE, max_size=10)),
        "shuffle": draw(st.randoms(use_true_random=False)),
        "break_off": draw(BREAK_OFF),
        "anew": draw(st.booleans()),
    }


class Model:
    """Rows as a list of [id, text, deleted]; what the lake is to show."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self.marks = False

    def apply(self, step: dict[str, Any]) -> None:
        if step["disposition"] != "merge":
            if step["disposition"] == "replace":
                self.rows, self.marks = [], False
            self.rows += [[id_, text, None] for id_, text in step["rows"]]
            return
        deletes = step["deletes"]
        self.marks |= deletes == "soft"
        final: dict[Any, tuple[str, Any]] = {}
        for operation, id_, text in step["changes"]:
            if operation != "delete" or deletes != "ignore":
                final[id_] = (operation, text)
        seen = set()
        kept = []
        for row in self.rows:
            operation, text = final.get(row[0], ("", None))
            seen.add(row[0])
            if operation == "delete":
                if deletes == "hard":
                    continue
                row[2] = True
            elif operation and (row[1] != text or row[2]):
                row[1], row[2] = text, False if self.marks else None
            kept.append(row)
        new = [[id_, text, False if self.marks else None] for id_, (op, text) in final.items() if op != "delete"]
        self.rows = kept + [row for row in new if row[0] not in seen]

    def shown(self) -> list[str]:
        return sorted(repr((id_, text, deleted, None)) for id_, text, deleted in self.rows)


class History:
    """Rows as a list of [id, text, deleted, is current]; one change after the other."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self.marks = False

    def apply(self, step: dict[str, Any]) -> None:
        self.marks |= step["deletes"] == "soft"
        for operation, id_, text in step["changes"]:
            current = next((row for row in self.rows if row[0] == id_ and row[3]), None)
            if operation == "delete":
                if step["deletes"] == "hard":
                    self.rows = [row for row in self.rows if row[0] != id_]
                elif step["deletes"] == "soft" and current is not None:
                    current[2], current[3] = True, False
            elif current is None or current[1] != text:
                if current is not None:
                    current[3] = False
                self.rows.append([id_, text, False if self.marks else None, True])

    def shown(self) -> list[str]:
        return sorted(map(repr, map(tuple, self.rows)))


def shown(rows: Sequence[Row]) -> list[str]:
    return sorted(repr((row["id"], row["text"], row.get("_deleted"), row.get("_is_current"))) for row in rows)


def assert_times(rows: Sequence[Row]) -> None:
    """States of a key follow each other; what is marked as deleted ended at that moment."""
    by_key: dict[Any, list[Row]] = {}
    for row in sorted(rows, key=lambda one: one["_valid_from"]):
        by_key.setdefault(row["id"], []).append(row)
    for states in by_key.values():
        for state, following in itertools.pairwise(states):
            assert state["_valid_from"] < state["_valid_to"] <= following["_valid_from"]
        for state in states:
            assert state["_is_current"] == (state["_valid_to"] is None)
            assert state.get("_deleted_at") == (state["_valid_to"] if state.get("_deleted") else None)


class Runs:
    """One table that runs load, each of which may lose the lake after some calls and be followed by another."""

    def __init__(self, lake: Lake, format: Any) -> None:
        self.table = EmulatedTable(lake, format, name=f"p{next(_TABLES)}")
        self.emulators = lake.emulators
        self._runs = itertools.count()

    async def carry_out(self, number: int, step: dict[str, Any]) -> None:
        self.emulators.set_faults([])
        if step["break_off"] is not None:
            self.emulators.set_faults([{"fault": "reset_before", "after": step["break_off"]}])
        parts = None
        try:
            parts = await self._attempt(number, step, None)
        except MigrationError:
            assert step["break_off"] is not None
        self.emulators.set_faults([])
        assert shown(self.table.rows()) in (self.before, self.after), "the state before or the state after"
        await self._attempt(number, step, parts if step["anew"] else None)

    before: list[str]
    after: list[str]

    async def _attempt(self, number: int, step: dict[str, Any], parts: Any) -> Any:
        run = f"run-{next(self._runs)}"
        moment = MOMENT + timedelta(hours=number)
        opened = self.table.open(run=run, now=lambda: moment)
        state = await opened.state()
        if state.applied >= number:
            assert (state.applied, state.position) == (number, {"n": number})
        if parts is None:
            await discarded(opened)
            by_key = step["disposition"] not in ("append", "replace")
            rows = (
                [
                    {"id": id_, "text": None if operation == "delete" else text, "_operation": operation,
                     "_position": "", "_order": order}
                    for order, (operation, id_, text) in enumerate(step["changes"])
                ]
                if by_key
                else [{"id": id_, "text": text} for id_, text in step["rows"]]
            )  # fmt: skip
            if by_key:
                step["shuffle"].shuffle(rows)
            half = len(rows) // 2
            columns = CHANGES if by_key else COLUMNS
            parts = []
            for name, some in (("0", rows[:half]), ("1", rows[half:])):
                parts += await self.table.write(opened, columns, some, changes=by_key, name=name)
        await self.table.commit(
            opened, COLUMNS, parts, number=number, run=run, disposition=step["disposition"], key=("id",),
            deletes=step.get("deletes", "soft"), position={"n": number},
        )  # fmt: skip
        return parts


_TABLES = itertools.count()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch, lake: Lake, make_onelake: MakeOneLake) -> None:
    """Nothing is tried twice: what fails stays as it is."""
    monkeypatch.setattr(http, "MAX_ATTEMPTS", 1)
    monkeypatch.setattr(log, "RETRIES", 0)
    # Each load of a log shakes hands anew; without TLS there is time for more of them.
    lake.onelake = make_onelake(blob_url=lake.emulators.addresses["onelake_plain_url"])


async def follow(
    lake: Lake, format: Any, steps: Sequence[dict[str, Any]], model: Model | History
) -> list[Row]:  # fmt: skip
    runs = Runs(lake, format)
    for number, step in enumerate(steps):
        runs.before = model.shown()
        model.apply(step)
        runs.after = model.shown()
        await runs.carry_out(number, step)
        assert shown(runs.table.rows()) == runs.after
        opened = runs.table.open(run="last")
        assert shown([row async for batch in opened.read() for row in batch.to_pylist()]) == runs.after
    await discarded(runs.table.open(run="last"))
    assert runs.table.left_over() == []
    return runs.table.rows()


@pytest.mark.usefixtures("hasty")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(loads(), min_size=1, max_size=4))
async def test_loads_into_parquet_files(lake: Lake, steps: list[dict[str, Any]]) -> None:
    await follow(lake, "parquet", steps, Model())


@pytest.mark.usefixtures("hasty")
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(loads() | merges(), min_size=1, max_size=5))
async def test_loads_and_merges_into_a_delta_table(lake: Lake, steps: list[dict[str, Any]]) -> None:
    await follow(lake, "delta", steps, Model())


@pytest.mark.usefixtures("hasty")
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(merges(disposition="history"), min_size=1, max_size=5))
async def test_histories_in_a_delta_table(lake: Lake, steps: list[dict[str, Any]]) -> None:
    assert_times(await follow(lake, "delta", steps, History()))
