"""The change feed of a library: where a walk stands, and what its next page holds.

Facts: Microsoft's "driveItem: delta" page and docs/protocols/graph.md section 2. A walk speaks of a moment. What it
still has to show is shown as it is now, and again where it was changed after that moment: a client that lets the last
occurrence win is right, and one that lets the first win is not.

Tokens are signed, not kept, so that they outlive a restart. A token belongs to the link it came in: in another one, or
with other parameters, it is refused.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from local.emulators.estate import GraphBehaviour
from local.emulators.graph.library import Library

_NEVER = 0xFFFFFFFF
_PACKED = struct.Struct(">HIBIIIIH")
_SIGNATURE_BYTES = 8


class TokenUnknown(Exception):
    """No token of ours, or one that was given up."""


class LinkRebuilt(Exception):
    """A token of ours in a link that is not."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a walk stands.

    Attributes:
        opens: a walk that has not begun: what changed after ``position``.
        full: everything there is, rather than what changed.
        began: length of the log when a full walk began.
        moment: length of the log up to which the walk goes.
        position: next entry of the log.
        page: how many pages were served.
        top: items of a page asked for; 0 if the client did not say.
    """

    library: int
    epoch: int
    opens: bool
    full: bool
    began: int
    moment: int
    position: int
    page: int
    top: int


class Tokens:
    """Writes places as tokens and reads them back."""

    def __init__(self, key: bytes) -> None:
        self._key = hashlib.blake2b(b"delta tokens", digest_size=32, key=key[:64]).digest()

    def _signature(self, text: bytes) -> bytes:
        return hashlib.blake2b(text, digest_size=_SIGNATURE_BYTES, key=self._key).digest()

    def write(self, place: Place, link: str) -> str:
        """Returns the token for a place, good in that link only."""
        flags = place.opens | place.full << 1
        packed = _PACKED.pack(
            place.library, place.epoch, flags, place.began, place.moment, place.position, place.page, place.top
        )
        own = self._signature(packed)
        return base64.urlsafe_b64encode(packed + own + self._signature(own + link.encode())).decode().rstrip("=")

    def read(self, token: str, link: str) -> Place:
        """Returns the place a token stands for.

        Raises:
            TokenUnknown: it was not written here.
            LinkRebuilt: it was written for another link.
        """
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            raise TokenUnknown from None
        if len(raw) != _PACKED.size + 2 * _SIGNATURE_BYTES:
            raise TokenUnknown
        packed, own, of_link = raw[: _PACKED.size], raw[_PACKED.size : -_SIGNATURE_BYTES], raw[-_SIGNATURE_BYTES:]
        if not hmac.compare_digest(own, self._signature(packed)):
            raise TokenUnknown
        if not hmac.compare_digest(of_link, self._signature(own + link.encode())):
            raise LinkRebuilt
        library, epoch, flags, *numbers = _PACKED.unpack(packed)
        return Place(library, epoch, bool(flags & 1), bool(flags & 2), *numbers)


def link_of(*, in_path: bool, query: Mapping[str, str]) -> str:
    """Returns what makes a link itself, apart from host, drive and token, however it was percent-encoded."""
    return "\n".join((str(in_path), *sorted(f"{name}={value}" for name, value in query.items() if name != "token")))


def beginning(library: Library, number: int, top: int) -> Place:
    """Returns the start of a walk over everything."""
    end = len(library.log)
    return Place(
        library=number, epoch=library.epoch, opens=False, full=True, began=end, moment=end, position=0, page=0, top=top
    )


def changes_since(library: Library, number: int, position: int, top: int) -> Place:
    """Returns the start of a walk over what changed after that many changes."""
    return Place(
        library=number,
        epoch=library.epoch,
        opens=True,
        full=False,
        began=0,
        moment=position,
        position=position,
        page=0,
        top=top,
    )


def position_at(library: Library, moment: datetime) -> int:
    """Returns how many changes there were at a moment."""
    return bisect.bisect_right(library.log_times, moment.timestamp())


@dataclass(frozen=True, slots=True)
class Page:
    """Items of a page, and where to go on: to the next page, or with ``ends`` to the next walk."""

    slots: list[int]
    next: Place
    ends: bool


def read_page(library: Library, place: Place, behaviour: GraphBehaviour, *, with_parents: bool) -> Page:
    """Returns the page at a place; the library as it is now decides what it shows.

    A page holds no more than was asked for, except that a change is never parted from the folders above it.
    """
    if place.opens:
        place = replace(place, opens=False, moment=len(library.log))
    every = behaviour.empty_page_every
    if every > 1 and place.page % every == every - 1 and place.position < place.moment:
        return Page([], replace(place, page=place.page + 1), ends=False)
    top = min(place.top or behaviour.page_items, behaviour.most_page_items)
    position, moment = place.position, place.moment
    shown: dict[int, None] = {}
    while position < moment:
        slot, newer = library.log[position], library.log_next[position]
        # An older entry of something that had changed again by the moment the walk speaks of.
        stale = newer < moment
        # Nothing to tell of what was deleted before the walk over everything began.
        over = place.full and library.gone[slot] and newer == _NEVER and position < place.began
        if not stale and not over:
            above = library.ancestors(slot) if with_parents and not place.full else []
            new = [one for one in above if one not in shown and not library.gone[one]]
            if slot not in shown:
                new.append(slot)
            if shown and len(shown) + len(new) > top:
                break
            shown.update(dict.fromkeys(new))
        position += 1
    if position == moment and behaviour.late_changes == "walk":
        moment = len(library.log)
    ends = position == moment
    if ends:
        return Page(list(shown), changes_since(library, place.library, position, place.top), ends=True)
    return Page(list(shown), replace(place, moment=moment, position=position, page=place.page + 1), ends=False)
