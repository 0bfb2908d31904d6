"""Bob Jenkins' lookup3 of many values at once, of 64 bits, as PostgreSQL's ``hash_bytes_extended`` with seed 0.

Each step of the algorithm is done for thousands of values by numpy, which lets other threads run. Source: PostgreSQL,
``src/common/hashfn.c``.
"""

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Numbers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

# So many values at a time that the arrays of a step stay in the processor's cache.
_CHUNK = 16384
# A round takes twelve bytes; so many rounds' bytes of each value are brought beside those of the others at once.
_ROUND, _ROUNDS_AT_ONCE = 12, 16
_START = np.uint32((0x9E3779B9 + 3923095) & 0xFFFFFFFF)
# What of the three words behind the last whole round belongs to a value that has so many bytes there.
_TAILS = np.array(
    [[(1 << 8 * min(max(left - 4 * word, 0), 4)) - 1 for word in range(3)] for left in range(_ROUND)], np.uint32
)
_HALF = np.uint64(32)


def of_values(data: npt.NDArray[np.uint8], starts: Numbers, lengths: Numbers) -> Hashes:
    """Hashes of strings of bytes.

    Args:
        data: Bytes of all values.
        starts: Where in ``data`` each begins.
        lengths: How many bytes each has, less than 12 * 2**16; the longest decides about the time that all take.
    """
    found = np.empty(len(starts), np.uint64)
    padded = np.concatenate((data, np.zeros(_ROUND * _ROUNDS_AT_ONCE, np.uint8)))
    for first in range(0, len(starts), _CHUNK):
        part = slice(first, first + _CHUNK)
        found[part] = _chunk(padded, starts[part], lengths[part])
    return found


def of_words(words: Words) -> Hashes:
    """Hashes of numbers of 32 bits (``hash_bytes_uint32_extended``)."""
    found = np.empty(len(words), np.uint64)
    for first in range(0, len(words), _CHUNK):
        part = words[first : first + _CHUNK]
        begun = np.full(len(part), _START + np.uint32(4))
        found[first : first + _CHUNK] = _final(begun + part, begun, begun.copy())
    return found


def of_double_words(numbers: Hashes) -> Hashes:
    """Hashes of numbers of 64 bits, taken as eight bytes, little-endian."""
    found = np.empty(len(numbers), np.uint64)
    for first in range(0, len(numbers), _CHUNK):
        part = numbers[first : first + _CHUNK]
        begun = np.full(len(part), _START + np.uint32(8))
        low, high = part.astype(np.uint32), (part >> _HALF).astype(np.uint32)
        found[first : first + _CHUNK] = _final(begun + low, begun + high, begun)
    return found


def _chunk(padded: npt.NDArray[np.uint8], starts: Numbers, lengths: Numbers) -> Hashes:
    rounds = lengths // _ROUND
    order = None
    if rounds[0] != rounds[-1] or rounds.min() != rounds.max():
        # Those that take the most rounds first, so that the ones that are under way always are the first.
        order = np.argsort(rounds.astype(np.uint16), kind="stable")[::-1]
        starts, lengths, rounds = starts[order], lengths[order], rounds[order]
    # How many values have so many rounds or more.
    reaching = np.bincount(rounds)[::-1].cumsum()[::-1].tolist()
    a = lengths.astype(np.uint32) + _START
    b, c, spare = a.copy(), a.copy(), np.empty_like(a)
    for first in range(0, len(reaching) - 1, _ROUNDS_AT_ONCE):
        under_way = reaching[first + 1 : first + 1 + _ROUNDS_AT_ONCE]
        words = _words(padded, starts[: under_way[0]] + _ROUND * first, _ROUND * len(under_way))
        for number, count in enumerate(under_way):
            one, two, three, left = a[:count], b[:count], c[:count], spare[:count]
            one += words[:count, 3 * number]
            two += words[:count, 3 * number + 1]
            three += words[:count, 3 * number + 2]
            _mix(one, two, three, left)
    last = _words(padded, starts + _ROUND * rounds, _ROUND) & _TAILS[lengths - _ROUND * rounds]
    a += last[:, 0]
    b += last[:, 1]
    # The lowest byte stays the length's.
    c += last[:, 2] << np.uint32(8)
    hashes = _final(a, b, c)
    if order is None:
        return hashes
    found = np.empty_like(hashes)
    found[order] = hashes
    return found


def _words(padded: npt.NDArray[np.uint8], places: Numbers, width: int) -> Words:
    """For each place, the bytes from there on, as words beside each other."""
    # So many bytes as one item, at every place of the data, of which some are picked.
    everywhere: npt.NDArray[np.void] = np.ndarray(len(padded) - width + 1, f"V{width}", padded, strides=(1,))
    return everywhere[places].view("<u4").reshape(-1, width // 4)


def _mix(a: Words, b: Words, c: Words, spare: Words) -> None:
    for one, other, third, left in (
        (a, c, b, 4),
        (b, a, c, 6),
        (c, b, a, 8),
        (a, c, b, 16),
        (b, a, c, 19),
        (c, b, a, 4),
    ):
        np.subtract(one, other, one)
        np.left_shift(other, left, spare)
        np.bitwise_xor(one, spare, one)
        np.right_shift(other, 32 - left, spare)
        np.bitwise_xor(one, spare, one)
        np.add(other, third, other)


def _final(a: Words, b: Words, c: Words) -> Hashes:
    spare = np.empty_like(a)
    for one, other, left in ((c, b, 14), (a, c, 11), (b, a, 25), (c, b, 16), (a, c, 4), (b, a, 14), (c, b, 24)):
        np.bitwise_xor(one, other, one)
        # The two parts of a rotated word have no bit in common, so that they can be taken off one after the other.
        np.left_shift(other, left, spare)
        np.subtract(one, spare, one)
        np.right_shift(other, 32 - left, spare)
        np.subtract(one, spare, one)
    return b.astype(np.uint64) << _HALF | c
