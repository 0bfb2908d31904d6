"""QuickXorHash: the hash that SharePoint announces for a file.

Byte ``i`` is XORed into 160 bits, rotated left by ``11 * i``; the length is XORed into the last eight of the 20 bytes
(Microsoft, "QuickXorHash Algorithm"). It finds damage, not forgery.

160 * 11 is a multiple of 160, so bytes that lie 160 apart are rotated alike, and any number of them may be XORed into
one beforehand. That is done for 20 KB at a time, as integers: a loop over bytes would be a thousand times slower.
"""

from base64 import b64encode

Bytes = bytes | bytearray | memoryview

_BITS = 160
_SHIFT = 11
_PERIOD_BYTES = 160
_HALVINGS = 7
# Large enough that the interpreter's work for each block does not count, and small enough for the processor's cache.
_FOLD_BYTES = _PERIOD_BYTES << _HALVINGS


def _spread_steps() -> list[tuple[int, int, int]]:
    """(mask of what stays, mask of what moves, by how many bits), to draw adjacent bytes apart to every 11th bit.

    Byte ``i`` moves up by ``3 * i`` bits. Each step moves those whose number has one certain bit, the highest first.
    """
    steps = []
    for bit in (128, 64, 32, 16, 8, 4, 2, 1):
        masks = [0, 0]
        for number in range(_PERIOD_BYTES):
            moved_so_far = number - number % (2 * bit)
            masks[bool(number & bit)] |= 0xFF << (8 * number + (_SHIFT - 8) * moved_so_far)
        steps.append((masks[0], masks[1], (_SHIFT - 8) * bit))
    return steps


_SPREAD = _spread_steps()


class QuickXorHash:
    """A running hash with the face of those in ``hashlib``."""

    digest_size = 20

    def __init__(self, data: Bytes = b"") -> None:
        self._folded = 0
        self._length = 0
        self.update(data)

    def update(self, data: Bytes) -> None:
        """Take in the next bytes; any division of a content into updates gives the same hash."""
        block = memoryview(data)
        folded = self._folded
        at = 0
        place = self._length % _FOLD_BYTES
        if place:
            at = _FOLD_BYTES - place
            folded ^= int.from_bytes(block[:at], "little") << (8 * place)
        for start in range(at, len(block), _FOLD_BYTES):
            folded ^= int.from_bytes(block[start : start + _FOLD_BYTES], "little")
        self._folded = folded
        self._length += len(block)

    def digest(self) -> bytes:
        """The 20 bytes of what was taken in so far."""
        bits = self._folded
        width = 8 * _FOLD_BYTES
        for _ in range(_HALVINGS):
            width //= 2
            bits = (bits & ((1 << width) - 1)) ^ (bits >> width)
        for stays, moves, by in _SPREAD:
            bits = (bits & stays) | ((bits & moves) << by)
        rotated = 0
        while bits:
            rotated ^= bits & ((1 << _BITS) - 1)
            bits >>= _BITS
        return (rotated ^ (self._length << (_BITS - 64))).to_bytes(self.digest_size, "little")

    def base64(self) -> str:
        """The digest as Graph writes it in ``file.hashes.quickXorHash``."""
        return b64encode(self.digest()).decode("ascii")
