"""Which paths differ in nothing but case, found in bounded memory.

A lake tells upper from lower case, and many who read from it do not: of two such names they see one. Names that differ
only in how an accent is written (composed or decomposed) are counted among them, since they meet the same fate.

Two such paths may lie any distance apart in a sorted walk. So the walk is looked at twice: the first look keeps a Bloom
filter of all paths and the few fingerprints that it may have met before, the second counts exactly those.
"""

import hashlib
from collections.abc import Iterator
from typing import Literal, NamedTuple
from unicodedata import normalize

# 16 MiB. At ten million paths a quarter of the bits are set, and of a thousand paths four are looked at in vain.
_BITS = 1 << 27
_PROBES = 4
_MASK = (1 << 64) - 1
MAX_SUSPECTS = 200_000
"""Fingerprints that are looked at again, at most; each takes about 200 bytes."""

Kind = Literal["file", "folder"]


class Twin(NamedTuple):
    """A path that was met with the same letters before."""

    path: str
    first: str
    kind: Kind
    """``file`` if either of the two is one."""


def folded(path: str) -> str:
    """What paths that differ only in case have in common. Letter by letter: ``ß`` is not ``ss``."""
    if path.isascii():
        return path.lower()
    return normalize("NFC", path).lower().replace("ς", "σ")


class CaseTwins:
    """Feed every path to :meth:`add`, and then, if :attr:`has_suspects`, every path once more to :meth:`look_again`.

    Both looks take paths in one and the same order, that of ``sort_key``: the folders of a path are those that the path
    before did not have.

    Attributes:
        is_exact: Whether all are counted; not so where more are suspected than ``MAX_SUSPECTS``.
    """

    def __init__(self) -> None:
        self.is_exact = True
        self._filter: bytearray | None = bytearray(_BITS // 8)
        self._suspects: set[int] = set()
        self._first: dict[int, tuple[str, Kind]] = {}
        self._before: list[str] = []

    def add(self, path: str) -> None:
        """The first look at a file's path."""
        assert self._filter is not None
        for name, _ in self._names(path):
            low, high = _fingerprint(name)
            known = True
            for probe in range(_PROBES):
                bit = ((low + probe * high) & _MASK) % _BITS
                if not self._filter[bit >> 3] >> (bit & 7) & 1:
                    known = False
                    self._filter[bit >> 3] |= 1 << (bit & 7)
            if known:
                if len(self._suspects) < MAX_SUSPECTS:
                    self._suspects.add(low)
                elif low not in self._suspects:
                    self.is_exact = False

    @property
    def has_suspects(self) -> bool:
        """Whether a second look is needed; it begins with this question."""
        self._filter = None
        self._before = []
        return bool(self._suspects)

    def look_again(self, path: str) -> Iterator[Twin]:
        """The second look at a file's path: what of it, itself or a folder of it, has a twin before it."""
        for name, kind in self._names(path):
            low, _ = _fingerprint(name)
            if low not in self._suspects:
                continue
            first, first_kind = self._first.setdefault(low, (name, kind))
            if first != name:
                yield Twin(name, first, "file" if "file" in (kind, first_kind) else "folder")

    def _names(self, path: str) -> Iterator[tuple[str, Kind]]:
        """The path, after those of its folders that are met for the first time."""
        segments = path.split("/")
        before, self._before = self._before, segments
        shared = 0
        for mine, theirs in zip(segments, before, strict=False):
            if mine != theirs:
                break
            shared += 1
        for depth in range(shared + 1, len(segments)):
            yield "/".join(segments[:depth]), "folder"
        yield path, "file"


def _fingerprint(path: str) -> tuple[int, int]:
    digest = hashlib.blake2b(folded(path).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    # Odd, so that the probes of one path differ.
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big") | 1
