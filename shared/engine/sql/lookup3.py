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
# Of a word that begins so many bytes before the value's end: none, or up to four of them are the value's.
_MASKS = np.array([(1 << 8 * count) - 1 for count in range(5)], np.uint32)
_HALF = np.uint64(32)


def of_values(data: npt.NDArray[np.uint8], starts: Numbers, lengths: Numbers) -> Hashes:
    """Hashes of strings of bytes.

    Args:
        data: Bytes of all values.
        starts: Where in ``data`` each begins.
        lengths: How many bytes each has; the longest decides about the time that all take.
    """
    found = np.empty(len(starts), np.uint64)
    if not len(starts):
        return found
    rounds = lengths // _ROUND
    # Those that take the most rounds first, so that the ones still under way are always the first of a chunk.
    order = np.argsort(rounds, kind="stable")[::-1] if rounds.min() != rounds.max() else None
    padded = np.concatenate((data, np.zeros(_ROUND * _ROUNDS_AT_ONCE, np.uint8)))
    for first in range(0, len(starts), _CHUNK):
        part = slice(first, first + _CHUNK) if order is None else order[first : first + _CHUNK]
        found[part] = _chunk(padded, starts[part], lengths[part], rounds[part])
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


def _chunk(padded: npt.NDArray[np.uint8], starts: Numbers, lengths: Numbers, rounds: Numbers) -> Hashes:
    """Of values in the order of their rounds, the most first."""
    most = int(rounds[0])
    # How many values have so many rounds or more.
    reaching = np.bincount(rounds, minlength=most + 2)[::-1].cumsum()[::-1].tolist()
    rest = lengths - _ROUND * rounds
    a = lengths.astype(np.uint32) + _START
    b, c, spare = a.copy(), a.copy(), np.empty_like(a)
    for first in range(0, most + 1, _ROUNDS_AT_ONCE):
        count = min(_ROUNDS_AT_ONCE, most + 1 - first)
        # So many bytes as one item, at every place of the data, of which those of the values are picked.
        width = _ROUND * count
        everywhere: npt.NDArray[np.void] = np.ndarray(len(padded) - width + 1, f"V{width}", padded, strides=(1,))
        words = everywhere[starts[: reaching[first]] + _ROUND * first].view("<u4").reshape(-1, 3 * count)
        for number in range(count):
            going_on, here = reaching[first + number + 1], reaching[first + number]
            one, two, three = (words[:, 3 * number + place] for place in range(3))
            if going_on:
                some = slice(0, going_on)
                a[some] += one[some]
                b[some] += two[some]
                c[some] += three[some]
                _mix(a[some], b[some], c[some], spare[some])
            if here > going_on:
                # Their last bytes; the lowest byte of the third word stays the length's.
                some = slice(going_on, here)
                left = rest[some]
                a[some] += one[some] & _MASKS[np.minimum(left, 4)]
                b[some] += two[some] & _MASKS[np.clip(left - 4, 0, 4)]
                c[some] += (three[some] & _MASKS[np.maximum(left - 8, 0)]) << np.uint32(8)
    return _final(a, b, c)


def _mix(a: Words, b: Words, c: Words, spare: Words) -> None:
    for one, other, third, left in (
        (a, c, b, 4),
        (b, a, c, 6),
        (c, b, a, 8),
        (a, c, b, 16),
        (b, a, c, 19),
        (c, b, a, 4),
    ):
        np.subtract(one, other, out=one)
        np.left_shift(other, left, out=spare)
        np.bitwise_xor(one, spare, out=one)
        np.right_shift(other, 32 - left, out=spare)
        np.bitwise_xor(one, spare, out=one)
        np.add(other, third, out=other)


def _final(a: Words, b: Words, c: Words) -> Hashes:
    spare = np.empty_like(a)
    for one, other, left in ((c, b, 14), (a, c, 11), (b, a, 25), (c, b, 16), (a, c, 4), (b, a, 14), (c, b, 24)):
        np.bitwise_xor(one, other, out=one)
        # The two parts of a rotated word have no bit in common, so that they can be taken off one after the other.
        np.left_shift(other, left, out=spare)
        np.subtract(one, spare, out=one)
        np.right_shift(other, 32 - left, out=spare)
        np.subtract(one, spare, out=one)
    return b.astype(np.uint64) << _HALF | c
