"""Which paths a pattern means.

``*`` and ``?`` stay inside one path segment, ``**`` as a whole segment spans any number of them (none included),
``[a-z]`` and ``[!a-z]`` are sets, ``{pdf,tif}`` are alternatives. Matching is case-sensitive and against the whole
relative path, as in rclone and gitignore with a leading slash.
"""

import re
from collections.abc import Sequence
from fnmatch import translate

_MAX_ALTERNATIVES = 256
_ANY_DEPTH = None


class Globs:
    """A set of patterns, compiled once.

    Raises:
        ValueError: at construction, naming the pattern and what is wrong with it.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [_compile(one) for pattern in patterns for one in _alternatives(pattern)]

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def match(self, path: str) -> bool:
        """Whether any pattern means this relative path (``/`` between segments)."""
        segments = path.split("/")
        return any(_match(pattern, segments) for pattern in self._patterns)


_Segment = re.Pattern[str] | None


def _compile(pattern: str) -> list[_Segment]:
    if not pattern:
        raise ValueError("a pattern must not be empty")
    if pattern.startswith("/") or pattern.endswith("/"):
        raise ValueError(f"{pattern!r} must be relative to the source and name files; leave the outer '/' away")
    compiled: list[_Segment] = []
    for segment in pattern.split("/"):
        if segment in ("", ".", ".."):
            raise ValueError(f"{pattern!r} must not have an empty, '.' or '..' segment")
        if segment == "**":
            if not compiled or compiled[-1] is not _ANY_DEPTH:
                compiled.append(_ANY_DEPTH)
            continue
        if "**" in segment:
            raise ValueError(f"{pattern!r}: '**' must stand alone between slashes; use '*' inside a name")
        _check_sets(segment, pattern)
        # fnmatch's translation uses atomic groups, so that no pattern can make the matching exponential.
        compiled.append(re.compile(translate(segment)))
    return compiled


def _check_sets(segment: str, pattern: str) -> None:
    rest = segment
    while "[" in rest:
        body = rest.partition("[")[2]
        start = 1 if body.startswith(("!", "]")) else 0
        if body.startswith("!]"):
            start = 2
        end = body.find("]", start)
        if end < 0:
            raise ValueError(f"{pattern!r} has a '[' without its ']'")
        rest = body[end + 1 :]


def _alternatives(pattern: str) -> list[str]:
    """Expand ``{a,b}``; nested braces too."""
    done: list[str] = []
    queue = [pattern]
    while queue:
        one = queue.pop()
        if len(queue) + len(done) > _MAX_ALTERNATIVES:
            raise ValueError(f"{pattern!r} stands for more than {_MAX_ALTERNATIVES} patterns")
        close = one.find("}")
        opening = one.rfind("{", 0, close) if close >= 0 else one.find("{")
        if close < 0 and opening < 0:
            done.append(one)
        elif close < 0 or opening < 0:
            raise ValueError(f"{pattern!r} has a brace without its partner")
        else:
            queue += [one[:opening] + choice + one[close + 1 :] for choice in one[opening + 1 : close].split(",")]
    return done


def _match(pattern: list[_Segment], segments: list[str]) -> bool:
    # The classic linear glob match with one backtracking point, on segments in place of characters.
    p = s = 0
    star = mark = -1
    while s < len(segments):
        if p < len(pattern):
            want = pattern[p]
            if want is _ANY_DEPTH:
                star, mark = p, s
                p += 1
                continue
            if want.match(segments[s]):
                p += 1
                s += 1
                continue
        if star < 0:
            return False
        mark += 1
        p, s = star + 1, mark
    return all(one is _ANY_DEPTH for one in pattern[p:])
