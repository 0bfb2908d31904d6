"""What files hold: bytes made from a key on demand, at any offset, and their quickXorHash without reading them.

A generated file is 16 bytes of its own, then a stretch of one pad that all files share, repeated where the file is
longer. Every stretch begins at a multiple of the hash's period, so that the hash of a stretch is the difference of two
sums known in advance: four hundred thousand files cost neither disk nor time until somebody downloads them.

quickXorHash: OneDrive/onedrive-api-docs, docs/code-snippets/quickxorhash.md. Byte ``i`` is turned left by ``11 i`` bits
in a register of 160, so positions 160 bytes apart are turned alike.
"""

from __future__ import annotations

import base64
import functools
import io
import random
from dataclasses import dataclass
from typing import Protocol

_PERIOD = 160
_MASK = (1 << _PERIOD) - 1
_TURNS = [11 * position % _PERIOD for position in range(_PERIOD)]
_PAD_BYTES = _PERIOD * 409
KEY_BYTES = 16


class Content(Protocol):
    """The bytes of one version of a file."""

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def read(self, start: int, stop: int) -> bytes:
        """Returns those from ``start`` up to ``stop``, which lie within."""
        ...

    def quick_xor_hash(self) -> str:
        """Returns their hash as Graph shows it."""
        ...


def _turned(byte: int, position: int) -> int:
    turned = byte << _TURNS[position % _PERIOD]
    return (turned | turned >> _PERIOD) & _MASK


def _shown(register: int, size: int) -> str:
    # The length goes over the last eight of the twenty bytes.
    return base64.b64encode((register ^ size << 96).to_bytes(20, "little")).decode()


@dataclass(frozen=True, slots=True)
class Given:
    """Bytes that somebody supplied."""

    data: bytes

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.data)

    def read(self, start: int, stop: int) -> bytes:
        """Returns those from ``start`` up to ``stop``."""
        return self.data[start:stop]

    def quick_xor_hash(self) -> str:
        """Computes their hash."""
        folded = 0
        for start in range(0, len(self.data), _PERIOD):
            folded ^= int.from_bytes(self.data[start : start + _PERIOD], "little")
        register = 0
        for position, byte in enumerate(folded.to_bytes(_PERIOD, "little")):
            register ^= _turned(byte, position)
        return _shown(register, len(self.data))


@functools.cache
def _pad() -> tuple[bytes, list[int]]:
    """The pad, twice over, and the register after each number of its bytes."""
    pad = random.Random("graph").randbytes(_PAD_BYTES)  # noqa: S311 - the same on every machine, not secret
    sums = [0]
    for position, byte in enumerate(pad):
        sums.append(sums[-1] ^ _turned(byte, position))
    return pad + pad, sums


@dataclass(frozen=True, slots=True)
class Generated:
    """Bytes made from a key of `KEY_BYTES` bytes."""

    key: bytes
    size: int

    def _begins(self) -> int:
        return int.from_bytes(self.key[:4], "big") % (_PAD_BYTES // _PERIOD) * _PERIOD

    def read(self, start: int, stop: int) -> bytes:
        """Returns those from ``start`` up to ``stop``; costs what they are, wherever they are."""
        pad, _ = _pad()
        count = stop - start
        first = (self._begins() + start) % _PAD_BYTES
        if count <= _PAD_BYTES:
            data = pad[first : first + count]
        else:
            data = (pad[first : first + _PAD_BYTES] * (count // _PAD_BYTES + 1))[:count]
        if start < KEY_BYTES:
            own = self.key[start:stop]
            data = own + data[len(own) :]
        return data

    def quick_xor_hash(self) -> str:
        """Returns their hash; costs the same for every size."""
        _, sums = _pad()
        first = self._begins()
        rounds, last = divmod(first + self.size, _PAD_BYTES)
        register = sums[first] ^ sums[last] ^ (sums[_PAD_BYTES] if rounds % 2 else 0)
        own = min(KEY_BYTES, self.size)
        # The pad has no place for a key that crosses its end: a stretch begins at least one period before it.
        register ^= sums[first] ^ sums[first + own]
        for position in range(own):
            register ^= _turned(self.key[position], position)
        return _shown(register, self.size)


class ContentFile(io.RawIOBase):
    """Content as a file to be sent piece by piece."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._content.size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        stop = min(self._content.size, self._position + len(buffer))
        data = self._content.read(self._position, stop) if stop > self._position else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
