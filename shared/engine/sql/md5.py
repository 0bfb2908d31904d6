"""The first bytes of MD5 of many short values at once, as RFC 1321 defines it.

A value at a time, hashlib spends most of its time on the call, and holds the interpreter meanwhile, so that threads
gain nothing. Here each step of the algorithm is done for thousands of values by numpy, which lets other threads run.
"""

import hashlib
from math import sin

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Numbers = npt.NDArray[np.int64]

# So many values at a time that the arrays of a step stay in the processor's cache; and how few are not worth it.
_CHUNK, _FEW = 8192, 256
# A block of 64 bytes holds the value, the bit 1 as a byte, and the length in 8 bytes.
_BLOCK, _TAIL = 64, 9
# For longer values hashlib is as quick.
_BLOCKS = 4
_MASKS = np.array([(1 << 8 * count) - 1 for count in range(8)] + [2**64 - 1], np.uint64)
_ENDS = np.array([0x80 << 8 * count for count in range(8)] + [0], np.uint64)

_START = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
_ADDEND = [np.uint32(int(abs(sin(step + 1)) * 2**32)) for step in range(64)]
_SHIFT = [(7, 12, 17, 22), (5, 9, 14, 20), (4, 11, 16, 23), (6, 10, 15, 21)]


def heads(data: npt.NDArray[np.uint8], starts: Numbers, lengths: Numbers) -> Numbers:
    """First four bytes of each digest, as a big-endian number; the arguments are those of :func:`halves`."""
    return halves(data, starts, lengths).astype(np.uint32).byteswap().astype(np.int64)


def halves(data: npt.NDArray[np.uint8], starts: Numbers, lengths: Numbers) -> npt.NDArray[np.uint64]:
    """First eight bytes of each digest, as a little-endian number.

    Args:
        data: Bytes of all values.
        starts: Where in ``data`` each begins.
        lengths: How many bytes each has; any number.
    """
    found = np.zeros(len(starts), np.uint64)
    blocks = (lengths + (_TAIL + _BLOCK - 1)) // _BLOCK
    padded = np.concatenate((data, np.zeros(_BLOCKS * _BLOCK, np.uint8)))
    # Each eight bytes of the data as a number, at every place.
    eights: npt.NDArray[np.uint64] = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))
    for count in range(1, _BLOCKS + 1):
        places = np.flatnonzero(blocks == count)
        if len(places) < _FEW:
            blocks[places] = _BLOCKS + 1
            continue
        for first in range(0, len(places), _CHUNK):
            part = places[first : first + _CHUNK]
            found[part] = _chunk(eights, starts[part], lengths[part], count)
    long, view = np.flatnonzero(blocks > _BLOCKS), data.data
    ends = starts + lengths
    for place, start, end in zip(long.tolist(), starts[long].tolist(), ends[long].tolist(), strict=True):
        found[place] = int.from_bytes(hashlib.md5(view[start:end], usedforsecurity=False).digest()[:8], "little")
    return found


def _chunk(eights: npt.NDArray[np.uint64], starts: Numbers, lengths: Numbers, blocks: int) -> npt.NDArray[np.uint64]:
    """Of values that take so many blocks."""
    # One word of all values beside each other, as the steps take them.
    columns = np.zeros((blocks * 16, len(starts)), np.uint32)
    longest = int(lengths.max())
    for eight in range(longest // 8 + 1):
        within = np.clip(lengths - 8 * eight, -1, 8)
        # -1, of values that ended before, reads the last of both tables, and is put right.
        bytes_ = eights[np.minimum(starts + 8 * eight, len(eights) - 1)] & _MASKS[within] | _ENDS[within]
        bytes_[within < 0] = 0
        columns[2 * eight] = bytes_.astype(np.uint32)
        columns[2 * eight + 1] = bytes_ >> np.uint64(32)
    columns[-2] = lengths * 8
    first, second = _digest(columns, blocks)
    return first.astype(np.uint64) | second.astype(np.uint64) << np.uint64(32)


def _digest(columns: Words, blocks: int) -> tuple[Words, Words]:
    """The first two words of the state after the last block."""
    count = columns.shape[1]
    state = [np.full(count, word, np.uint32) for word in _START]
    mixed, spare = np.empty(count, np.uint32), np.empty(count, np.uint32)
    for block in range(blocks):
        words = columns[block * 16 : block * 16 + 16]
        a, b, c, d = (word.copy() for word in state)
        for step in range(64):
            turn, place = divmod(step, 16)
            if turn == 0:  # d ^ (b & (c ^ d))
                np.bitwise_xor(c, d, out=mixed)
                np.bitwise_and(mixed, b, out=mixed)
                np.bitwise_xor(mixed, d, out=mixed)
            elif turn == 1:  # c ^ (d & (b ^ c))
                place = (5 * place + 1) % 16
                np.bitwise_xor(b, c, out=mixed)
                np.bitwise_and(mixed, d, out=mixed)
                np.bitwise_xor(mixed, c, out=mixed)
            elif turn == 2:  # b ^ c ^ d
                place = (3 * place + 5) % 16
                np.bitwise_xor(b, c, out=mixed)
                np.bitwise_xor(mixed, d, out=mixed)
            else:  # c ^ (b | ~d)
                place = 7 * place % 16
                np.invert(d, out=mixed)
                np.bitwise_or(mixed, b, out=mixed)
                np.bitwise_xor(mixed, c, out=mixed)
            np.add(a, mixed, out=a)
            np.add(a, words[place], out=a)
            np.add(a, _ADDEND[step], out=a)
            left = _SHIFT[turn][step % 4]
            np.right_shift(a, 32 - left, out=spare)
            np.left_shift(a, left, out=a)
            np.bitwise_or(a, spare, out=a)
            np.add(a, b, out=a)
            a, b, c, d = d, a, b, c
        for total, word in zip(state, (a, b, c, d), strict=True):
            np.add(total, word, out=total)
    return state[0], state[1]
