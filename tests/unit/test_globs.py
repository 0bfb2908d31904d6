"""Globs: what each sign means, which patterns are refused and with which words, and that none is exponential."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.policy.globs import Globs


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("*.pdf", ["a.pdf", ".pdf", "ä.pdf"], ["a.PDF", "x/a.pdf", "a.pdfx", "a_pdf"]),
        ("**/*.pdf", ["a.pdf", "x/a.pdf", "x/y/z/a.pdf"], ["a.txt", "x/a.pdf/b"]),
        ("**", ["a", "a/b/c", "\ud800"], []),
        ("a/**", ["a/b", "a/b/c"], ["b/a", "ab/c"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["a/xb", "x/a/b", "a/b/c"]),
        ("**/a/**/b", ["a/b", "x/a/a/b", "a/b/a/b"], ["a/b/c", "b/a"]),
        ("**/**/x", ["x", "a/b/x"], ["xx"]),
        ("file?.txt", ["file1.txt", "fileä.txt"], ["file.txt", "file12.txt", "file/.txt"]),
        ("[a-c]1", ["a1", "b1"], ["d1", "A1", "-1"]),
        ("[!a-c]1", ["d1", "-1"], ["a1", "/1"]),
        ("[]]x", ["]x"], ["x", "[x"]),
        ("[!]]x", ["ax"], ["]x"]),
        ("[z-a]", [], ["z", "a", "-"]),
        ("*.{pdf,tif{,f}}", ["a.pdf", "a.tif", "a.tiff"], ["a.tiffx", "a.{pdf"]),
        ("{a,b/c}/*.x", ["a/1.x", "b/c/1.x"], ["b/1.x", "c/1.x"]),
        ("a.b", ["a.b"], ["aab", "a.b\n"]),
        ("(a|b)+$^.*", ["(a|b)+$^.anything"], ["a", "b"]),
        ("a\nb*", ["a\nb", "a\nbc\nd"], ["a"]),
    ],
)
def test_what_a_pattern_means(pattern: str, matching: list[str], other: list[str]) -> None:
    globs = Globs([pattern])
    assert [path for path in matching if not globs.match(path)] == []
    assert [path for path in other if globs.match(path)] == []


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("", "must not be empty"),
        ("{,a}", "must not be empty"),
        ("/a", "must be relative"),
        ("a/", "must be relative"),
        ("a//b", "empty, '.' or '..' segment"),
        ("./a", "empty, '.' or '..' segment"),
        ("a/../b", "empty, '.' or '..' segment"),
        ("a**", "must stand alone"),
        ("x/**.pdf", "must stand alone"),
        ("[a", "'[' without its ']'"),
        ("a[!]", "'[' without its ']'"),
        ("[]", "'[' without its ']'"),
        ("{a", "brace without its partner"),
        ("a}", "brace without its partner"),
        ("{a}}", "brace without its partner"),
        ("{a,b}" * 9, "stands for more than 256"),
        ("{" + "a," * 300 + "a}", "stands for more than 256"),
    ],
)
def test_a_bad_pattern_is_named(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Globs(["*", pattern])


def test_no_patterns_match_nothing_and_are_false() -> None:
    assert not Globs([])
    assert not Globs([]).match("a")
    assert Globs(["*"])


def _by_definition(pattern: list[str], segments: list[str]) -> bool:
    if not pattern:
        return not segments
    if pattern[0] == "**":
        return any(_by_definition(pattern[1:], segments[skip:]) for skip in range(len(segments) + 1))
    return bool(segments) and fnmatchcase(segments[0], pattern[0]) and _by_definition(pattern[1:], segments[1:])


_PATTERN_SEGMENTS = st.lists(st.sampled_from(["**", "*", "a", "b", "a*", "*b", "?", "[!a]"]), min_size=1, max_size=6)
_PATH_SEGMENTS = st.lists(st.sampled_from(["a", "b", "ab", "ba", "c"]), min_size=1, max_size=6)


@given(_PATTERN_SEGMENTS, _PATH_SEGMENTS)
def test_matching_is_the_recursive_definition(pattern: list[str], path: list[str]) -> None:
    assert Globs(["/".join(pattern)]).match("/".join(path)) == _by_definition(pattern, path)


def test_no_pattern_is_exponential() -> None:
    """Each of these keeps a naive matcher busy for longer than the age of the universe."""
    assert not Globs(["/".join(["**", "a*"] * 40 + ["b"])]).match("/".join(["aaa"] * 500))
    assert not Globs(["*a" * 60 + "b"]).match("a" * 4000)
    assert not Globs(["[a-z]*" * 60 + "!"]).match("a" * 4000)


@given(st.text(max_size=30))
def test_any_text_is_a_pattern_or_named_as_bad(text: str) -> None:
    try:
        globs = Globs([text])
    except ValueError as error:
        assert len(str(error)) > 10
    else:
        globs.match("a/b")
