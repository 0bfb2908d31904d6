"""The beginning of a file that is too large to be fetched for a load test.

Nothing is decoded here: what comes from outside is unpacked by the process that loads, under its limits.
"""

import asyncio
import struct
from pathlib import Path

from shared.ports import AssetBlobs

_READ_BYTES = 4 * 1024 * 1024
_MAGIC = b"PAR1"


class TooLarge(Exception):
    """Even the beginning of the file is more than may be fetched."""


class Unreadable(Exception):
    """The file is none of its format; the text says why."""


async def lines(blobs: AssetBlobs, name: str, ref: str, to: Path, most_bytes: int) -> None:
    """Write as many whole lines as the first bytes hold."""
    content = await blobs.open(name, ref)
    try:
        with to.open("wb") as file:
            left = min(most_bytes, content.size_bytes)
            while left:
                block = await content.read(min(left, _READ_BYTES))
                await asyncio.to_thread(file.write, block)
                left -= len(block)
    finally:
        await content.close()
    await asyncio.to_thread(_cut, to)


async def parquet(blobs: AssetBlobs, name: str, ref: str, to: Path, most_bytes: int, rows: int) -> int:
    """Write the footer and the first row groups where they stand, into a file that has holes for the rest.

    Returns:
        How many rows there are before the first hole: at least those that were asked for, if the bytes suffice.

    Raises:
        TooLarge: not even one row group fits.
        Unreadable: it is no Parquet file.
        MigrationError: of the account.
    """
    found = await blobs.stat(name)
    size = found.size_bytes if found is not None else 0
    if size < 12:
        raise Unreadable("it is too short to be a Parquet file")
    tail = await blobs.read_range(name, ref, size - 8, 8)
    footer_bytes = struct.unpack("<I", tail[:4])[0] + 8
    if tail[4:] != _MAGIC or footer_bytes > size - 4:
        raise Unreadable("it does not end as a Parquet file does")
    left = most_bytes - footer_bytes
    if left < 0:
        raise TooLarge
    with to.open("wb") as file:
        file.truncate(size)
        file.write(_MAGIC)

        async def bring(start: int, count: int) -> None:
            for at in range(start, start + count, _READ_BYTES):
                block = await blobs.read_range(name, ref, at, min(_READ_BYTES, start + count - at))
                file.seek(at)
                await asyncio.to_thread(file.write, block)

        await bring(size - footer_bytes, footer_bytes)
        file.flush()
        have = 0
        for count, spans in await asyncio.to_thread(_row_groups, to, size):
            wanted = sum(length for _, length in spans)
            if have >= rows or wanted > left:
                break
            for start, length in spans:
                await bring(start, length)
            left -= wanted
            have += count
    if not have:
        raise TooLarge
    return have


def _cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: data.rfind(b"\n") + 1])


def _row_groups(file: Path, size_bytes: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """Rows of each row group, and where its columns stand."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        told = pq.read_metadata(file)
        found = []
        for number in range(told.num_row_groups):
            group = told.row_group(number)
            spans = []
            for position in range(group.num_columns):
                column = group.column(position)
                # Files of some writers say 0 where there is no dictionary.
                start = min(at for at in (column.dictionary_page_offset, column.data_page_offset) if at)
                spans.append((start, column.total_compressed_size))
            found.append((group.num_rows, spans))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Unreadable(" ".join(str(error).split())[:300]) from None
    if any(start < 4 or length < 0 or start + length > size_bytes for _, spans in found for start, length in spans):
        raise Unreadable("its footer names places outside of the file")
    return found
