"""Paths: the order of a walk, what the lake cannot take, and how any name is printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.policy.paths import (
    STAGING_PREFIX,
    check_target_path,
    lake_path,
    printable,
    sort_key,
    source_path,
    staging_prefix,
    too_long_reason,
    unmappable_reason,
)

NAMES = st.text(
    st.characters(exclude_characters="/\x00", categories=None) | st.sampled_from("\x01 !-.~\ud800\udcff\U0001f600ab"),
    min_size=1,
    max_size=4,
).filter(lambda name: name not in (".", ".."))


def _depth_first(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name in sorted(tree):
        if isinstance(tree[name], dict):
            yield from _depth_first(tree[name], f"{prefix}{name}/")
        else:
            yield prefix + name


def _planted(paths: list[list[str]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for segments in paths:
        node = tree
        for name in segments[:-1]:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                break
        else:
            node.setdefault(segments[-1], "file")
    return tree


@given(st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=12))
def test_sort_key_orders_like_a_sorted_walk(paths: list[list[str]]) -> None:
    walked = list(_depth_first(_planted(paths)))
    assert sorted(walked, key=sort_key) == walked


def test_a_folder_comes_before_its_longer_siblings() -> None:
    paths = ["a", "a b/x", "a!/x", "a-b", "a.txt", "a/b", "a/b/c", "ab", "b"]
    assert sorted(paths, key=sort_key) == ["a", "a/b", "a/b/c", "a b/x", "a!/x", "a-b", "a.txt", "ab", "b"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("a\x1fb", "U+001F"),
        ("a\x7f", "U+007F"),
        ("x/a\ue000", "U+E000"),
        ("\uffff", "U+FFFF"),
        ("\ufffe", "U+FFFE"),
        ("a\udcff", "not valid UTF-8"),
        ("\ud83d/x", "not valid UTF-8"),
        ("a\\b", "backslash"),
        ("a//b", "empty, '.' or '..'"),
        ("", "empty, '.' or '..'"),
        ("a/../b", "empty, '.' or '..'"),
        ("./a", "empty, '.' or '..'"),
        ("a./b", "ends in a dot"),
        ("a/b.", "ends in a dot"),
        (f"x/{STAGING_PREFIX}1", "kept for files on their way"),
        (f"{STAGING_PREFIX}/x", "kept for files on their way"),
    ],
)
def test_what_the_lake_cannot_take(path: str, said: str) -> None:
    assert said in (unmappable_reason(path) or "")


@pytest.mark.parametrize(
    "path", ["a", "%41", "a b/ä", "e\u0301", "\u00e9", "\U0001f600/x", ".hidden", "a..b", "a ", "…", "=x", "\ufffd"]
)
def test_what_the_lake_takes(path: str) -> None:
    assert unmappable_reason(path) is None


# Rich in what is encoded, in percent signs and in the digits that make an escape of them.
SEGMENTS = st.lists(
    st.text(st.characters(exclude_characters="/", categories=None), min_size=1, max_size=2)
    | st.sampled_from(["%", "2", "e", "E", "5C", ".", "\\", STAGING_PREFIX, "\ue000", "\ud83d", "\ude00", "\x7f"]),
    min_size=1,
    max_size=6,
).map("".join)
PATHS = st.lists(SEGMENTS, min_size=1, max_size=3).map("/".join)


@given(PATHS)
def test_the_lake_takes_every_name_and_gives_it_back(path: str) -> None:
    mapped = lake_path(path)
    assert unmappable_reason(mapped) is None
    assert source_path(mapped) == path
    assert mapped.count("/") == path.count("/")


@given(PATHS)
def test_a_name_that_the_lake_takes_stays_as_it_is(path: str) -> None:
    is_ambiguous = re.search("%[0-9A-Fa-f]{2}", path) is not None
    if unmappable_reason(path) is None and not is_ambiguous:
        assert lake_path(path) == path


@pytest.mark.parametrize(
    ("path", "mapped"),
    [
        ("100%/a b.pdf", "100%/a b.pdf"),
        ("50%25", "50%2525"),
        ("a./b..", "a%2E/b.%2E"),
        ("..", ".%2E"),
        ("a\\b\x01", "a%5Cb%01"),
        ("x/\ue000\uffff", "x/%EE%80%80%EF%BF%BF"),
        (f"x/{STAGING_PREFIX}1", f"x/%2E{STAGING_PREFIX[1:]}1"),
        (f"x{STAGING_PREFIX}1", f"x{STAGING_PREFIX}1"),
    ],
)
def test_names_as_the_lake_has_them(path: str, mapped: str) -> None:
    assert lake_path(path) == mapped


def test_an_escape_that_is_not_ours_stays() -> None:
    assert source_path("a%FFb") == "a%FFb"


def test_too_long_and_too_deep() -> None:
    assert too_long_reason("a" * 1024) is None
    assert "1025 characters" in (too_long_reason("a" * 1025) or "")
    assert too_long_reason("/".join(["a"] * 57)) is None
    assert "58 segments" in (too_long_reason("/".join(["a"] * 58)) or "")


@pytest.mark.parametrize(
    ("given_path", "kept"),
    [("Files/x", "Files/x"), ("/Files/x/", "Files/x"), ("Files", "Files"), ("Tables/a/b", "Tables/a/b")],
)
def test_target_paths(given_path: str, kept: str) -> None:
    assert check_target_path(given_path) == kept


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("files/x", "must begin with Files/ or Tables/"),
        ("Filesx/y", "must begin with"),
        ("", "must begin with"),
        ("/", "must begin with"),
        ("Files//x", "segment"),
        ("Files/../Tables", "segment"),
        ("Files/x.", "ends in a dot"),
        ("Files/" + "a" * 1024, "1030 characters"),
    ],
)
def test_target_paths_that_are_refused(path: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        check_target_path(path)


@given(st.text(st.characters(categories=None)))
def test_printable_is_utf8_and_leaves_ordinary_names_alone(path: str) -> None:
    try:
        shown = printable(path)
    except UnicodeEncodeError:
        # Surrogates that no file system's bytes decode to.
        assert any("\ud800" <= character <= "\udc7f" or "\udd00" <= character <= "\udfff" for character in path)
        return
    shown.encode("utf-8")
    if unmappable_reason(path) is None:
        assert shown == path


@given(st.binary(max_size=20))
def test_any_name_of_a_file_system_is_printable(name: bytes) -> None:
    printable(name.decode("utf-8", "surrogateescape")).encode("utf-8")


def test_staging_names_are_apart_by_job() -> None:
    assert staging_prefix("a") != staging_prefix("b")
    assert staging_prefix("a").startswith(STAGING_PREFIX)
    assert unmappable_reason(staging_prefix("a") + "x") is not None
