"""Paths that differ only in case: all of them, and nothing else, whatever their order and number."""

from __future__ import annotations

from collections.abc import Iterable
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.policy import case_twins
from shared.policy.case_twins import CaseTwins, Twin, folded
from shared.policy.paths import sort_key


def twins_of(paths: Iterable[str], *, is_exact: bool = True) -> list[Twin]:
    ordered = sorted(set(paths), key=sort_key)
    twins = CaseTwins()
    for path in ordered:
        twins.add(path)
    found = [twin for path in ordered for twin in twins.look_again(path)] if twins.has_suspects else []
    assert twins.is_exact is is_exact
    return found


def by_hand(paths: Iterable[str]) -> set[str]:
    """Every path and folder whose letters another one has, but for the first of each."""
    names: dict[str, list[str]] = {}
    for path in sorted(set(paths), key=sort_key):
        segments = path.split("/")
        for depth in range(1, len(segments) + 1):
            same = names.setdefault(folded("/".join(segments[:depth])), [])
            if "/".join(segments[:depth]) not in same:
                same.append("/".join(segments[:depth]))
    return {name for same in names.values() for name in same[1:]}


@pytest.fixture(autouse=True)
def small_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the filter often errs, and is quick to make."""
    monkeypatch.setattr(case_twins, "_BITS", 256)


@pytest.mark.parametrize(("paths", "expected"), [
    ([], []),
    (["a", "b", "ab", "a.b"], []),
    (["Report.TXT", "m", "report.txt"], [("report.txt", "Report.TXT", "file")]),
    (["A/x", "a/x"], [("a", "A", "folder"), ("a/x", "A/x", "file")]),
    (["A/x", "a/y"], [("a", "A", "folder")]),
    (["A/x/1", "A/y/1", "B/x/1"], []),
    (["a", "A/x"], [("a", "A", "file")]),
    (["a", "a/x"], []),
    (["AA", "Aa", "aA"], [("Aa", "AA", "file"), ("aA", "AA", "file")]),
    (["caf\u00e9", "cafe\u0301", "CAF\u00c9"],
     [("cafe\u0301", "CAF\u00c9", "file"), ("caf\u00e9", "CAF\u00c9", "file")]),
    (["stra\u00dfe", "strasse", "STRASSE"], [("strasse", "STRASSE", "file")]),
    (["\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c2"],
     [("\u03bf\u03b4\u03bf\u03c2", "\u039f\u0394\u039f\u03a3", "file")]),
    (["caf\udce9", "CAF\udce9"], [("caf\udce9", "CAF\udce9", "file")]),
])  # fmt: skip
def test_what_is_a_twin(paths: list[str], expected: list[tuple[str, str, str]]) -> None:
    found = twins_of(paths)
    assert sorted(found) == sorted(Twin(*one) for one in expected)  # type: ignore[arg-type]


_NAMES = st.sampled_from(["a", "A", "b", "B", "\u00e9", normalize("NFD", "\u00c9"), "a.txt", "A.txt"])
_PATHS = st.lists(st.lists(_NAMES, min_size=1, max_size=4).map("/".join), max_size=60)


@given(_PATHS)
@settings(max_examples=200)
def test_all_are_found_and_nothing_else(paths: list[str]) -> None:
    assert {twin.path for twin in twins_of(paths)} == by_hand(paths)


def test_a_filter_that_is_full_finds_the_same() -> None:
    paths = [f"d{number % 7}/F{number}" for number in range(2000)]
    assert twins_of(paths) == []
    assert {twin.path for twin in twins_of([*paths, "D3/f3", "d3/f3"])} == {"d3", "d3/F3", "d3/f3"}


def test_more_than_can_be_remembered_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_twins, "MAX_SUSPECTS", 3)
    found = twins_of([name for number in range(9) for name in (f"f{number}", f"F{number}")], is_exact=False)
    assert 1 <= len(found) <= 3
