"""Records as JSON lines: any name survives, and any way of splitting lines."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shared.model.records import dump_lines, load_lines

TEXTS = st.text(st.characters(categories=None) | st.sampled_from("\n\r\x85\u2028\u2029\ud800\udcff\x00"), max_size=10)
ROWS = st.lists(st.dictionaries(TEXTS, TEXTS | st.none() | st.integers() | st.booleans(), max_size=4), max_size=5)


@given(ROWS)
def test_rows_come_back_as_they_were(rows: list[Any]) -> None:
    data = dump_lines(rows)
    assert load_lines(data) == rows
    assert data.isascii()
    assert data.count(b"\n") == len(rows)


def test_names_that_are_not_utf8_come_back() -> None:
    rows = [{"path": b"caf\xe9".decode("utf-8", "surrogateescape")}]
    assert load_lines(dump_lines(rows)) == rows


def test_nothing_is_nothing() -> None:
    assert dump_lines([]) == b""
    assert load_lines(b"") == []
