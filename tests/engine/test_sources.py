"""Pages of catalogs and of several sources: whatever their size, all items once, in order."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.engine.catalog import Catalog, write_part
from shared.engine.sources import JoinedTree, SourcePart
from shared.policy.paths import sort_key
from shared.ports import Moved, SourceItem, SourcePage
from tests.support.runs import memory_store

NAMES = st.sampled_from(["a", "a b", "a-", "a.x", "b", "\u00e4", "\U0001f600"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sets(PATHS, min_size=1, max_size=6), max_size=5), st.integers(1, 4), st.none() | PATHS)
async def test_pages_of_parts_that_overlap(parts: list[set[str]], limit: int, after: str | None) -> None:
    store = memory_store()
    seen: set[str] = set()
    written = []
    for number, paths in enumerate(parts):
        own = sorted(paths - seen, key=sort_key)
        seen |= paths
        if own:
            rows = [{"path": path, "value": number} for path in own]
            written.append(await write_part(store, f"part-{number}", rows))
    opened = Catalog(store, written)
    expected = sorted((path for path in seen if after is None or sort_key(path) > sort_key(after)), key=sort_key)
    found: list[str] = []
    more, cursor = True, after
    while more:
        rows, more = await opened.page(cursor, limit)
        assert len(rows) == limit or not more
        found += [row["path"] for row in rows]
        cursor = found[-1] if found else None
    assert found == expected
    for path in {*seen, "a/missing"}:
        row = await opened.get(path)
        assert (row["path"] if row else None) == (path if path in seen else None)


class Listed:
    """A source that holds these paths; one that tells changes names what is gone."""

    def __init__(self, paths: set[str], gone: set[str] | None) -> None:
        self.paths = sorted(paths, key=sort_key)
        self.gone = gone

    async def list_page(self, cursor: str | None, limit: int) -> SourcePage:
        every = sorted({*self.paths, *(self.gone or ())}, key=sort_key)
        left = [path for path in every if cursor is None or sort_key(path) > sort_key(cursor)]
        page = left[:limit]
        items = [SourceItem(path, 1, "v") for path in page if path in self.paths]
        gone = {path: f"ref of {path}" for path in page if path not in self.paths} if self.gone is not None else None
        moved = (
            {item.path: Moved(f"{item.path}.old", "e", "h", 1, True) for item in items} if gone is not None else None
        )
        return SourcePage(items, page[-1] if len(left) > limit else None, gone, moved)


SUBS = st.lists(st.sampled_from(["a", "a-", "a b", "b", "c/d", "c/e", "\u00e4"]), min_size=1, max_size=4, unique=True)


@settings(max_examples=150, deadline=None)
@given(SUBS, st.data(), st.integers(1, 4), st.booleans())
async def test_the_pages_of_several_sources_are_all_of_them_in_order(
    subs: list[str], data: Any, limit: int, single: bool
) -> None:
    subs = [""] if single else sorted(subs, key=sort_key)
    trees = {
        sub: Listed(data.draw(st.sets(PATHS, max_size=6)), data.draw(st.none() | st.sets(PATHS, max_size=3)))
        for sub in subs
    }
    joined = JoinedTree([SourcePart(sub, tree) for sub, tree in trees.items()])  # type: ignore[arg-type]
    cursor: str | None = None
    items: list[str] = []
    gone: list[str] = []
    bounds: list[str] = []
    begun = 0
    while True:
        page = await joined.list_page(cursor, limit)
        begun += page.begins
        here = [item.path for item in page.items] + list(page.gone or ())
        # A planner looks into the ledger between two cursors: what it finds there belongs to this page.
        assert all(cursor is None or sort_key(path) > sort_key(cursor) for path in here)
        assert all(page.cursor is None or sort_key(path) <= sort_key(page.cursor) for path in here)
        assert len({joined._part(path).sub for path in here}) <= 1
        assert all(moved.path == f"{path}.old" for path, moved in (page.moved or {}).items())
        items += [item.path for item in page.items]
        gone += page.gone or ()
        cursor = page.cursor
        if cursor is None:
            break
        bounds.append(cursor)
    assert begun == len(subs), "each source begins once"
    assert all(sort_key(one) < sort_key(other) for one, other in pairwise(bounds))

    def below(sub: str, paths: Any) -> list[str]:
        return [f"{sub}/{path}" if sub else path for path in sorted(paths, key=sort_key)]

    assert items == [path for sub, tree in trees.items() for path in below(sub, tree.paths)]
    assert gone == [path for sub, tree in trees.items() for path in below(sub, (tree.gone or set()) - set(tree.paths))]
    assert all(joined.relative(path) == path[len(joined._part(path).sub) :].lstrip("/") for path in items)
