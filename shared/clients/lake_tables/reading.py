"""Parquet files in the lake, read in ranges: the footer first, then row group by row group the columns asked for."""

import asyncio
import io
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from shared.clients.onelake.tree import LakeTree
from shared.errors import NotFound, Unsupported

# What Arrow reads of a file's end before it knows how long the footer is.
_TAIL_BYTES = 64 * 1024
# Fewer calls are worth more than so many bytes between two columns.
_GAP_BYTES = 256 * 1024
# Of values that are decoded at a time.
_BATCH_BYTES = 4 * 1024 * 1024


class LakeParquet:
    """One file. One task at a time."""

    def __init__(self, tree: LakeTree, path: str, file: "_Ranges", parquet: pq.ParquetFile) -> None:
        self.path = path
        self.metadata = parquet.metadata
        self.schema: pa.Schema = parquet.schema_arrow
        self._tree = tree
        self._file = file
        self._parquet = parquet

    @classmethod
    async def open(cls, tree: LakeTree, path: str, size_bytes: int | None = None) -> "LakeParquet":
        """Read a file's footer.

        Raises:
            NotFound: there is no such file.
            Unsupported: it is no Parquet file.
        """
        if size_bytes is None:
            found = await tree.properties(path)
            if found is None:
                raise NotFound("a data file of the table is gone", subject=path)
            size_bytes = found.size_bytes
        if size_bytes < 12:
            raise Unsupported("a data file of the table is no Parquet file", code="not_parquet", subject=path)
        start = max(0, size_bytes - _TAIL_BYTES)
        [tail] = await tree.read_ranges(path, [(start, size_bytes)])
        footer = int.from_bytes(tail[-8:-4], "little") + 8
        if tail[-4:] != b"PAR1" or footer > size_bytes:
            raise Unsupported("a data file of the table is no Parquet file", code="not_parquet", subject=path)
        if footer > len(tail):
            [rest] = await tree.read_ranges(path, [(size_bytes - footer, start)])
            start, tail = size_bytes - footer, rest + tail
        file = _Ranges(size_bytes)
        file.hold([(start, tail)])
        parquet = await asyncio.to_thread(pq.ParquetFile, file, pre_buffer=False, coerce_int96_timestamp_unit="us")
        return cls(tree, path, file, parquet)

    async def row_group(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of one row group; of the columns asked for, those that the file has."""
        names = self.schema.names
        wanted = [name for name in (names if columns is None else columns) if name in names]
        group = self.metadata.row_group(number)
        if not wanted:
            # The number of rows is all that is asked of this file.
            return pa.table({"": pa.nulls(group.num_rows)}).select([])
        ranges = self._ranges(number, {*wanted})
        data = await self._tree.read_ranges(self.path, ranges)
        self._file.hold([(start, one) for (start, _), one in zip(ranges, data, strict=True)])
        table: pa.Table = await asyncio.to_thread(
            self._parquet.read_row_group, number, columns=wanted, use_threads=False
        )
        self._file.hold([])
        return table

    async def batches(self) -> AsyncIterator[pa.RecordBatch]:
        """All rows, decoded a little at a time; the bytes of the next row group are on their way meanwhile."""
        count = self.metadata.num_row_groups
        coming = asyncio.create_task(self._fetched(0)) if count else None
        try:
            for number in range(count):
                assert coming is not None
                held = await coming
                coming = asyncio.create_task(self._fetched(number + 1)) if number + 1 < count else None
                self._file.hold(held)
                group = self.metadata.row_group(number)
                rows = max(1, group.num_rows * _BATCH_BYTES // max(1, group.total_byte_size))
                batches = self._parquet.iter_batches(rows, row_groups=[number], use_threads=False)
                while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                    yield batch
        finally:
            self._file.hold([])
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)

    async def _fetched(self, number: int) -> list[tuple[int, bytes]]:
        ranges = self._ranges(number, {*self.schema.names})
        data = await self._tree.read_ranges(self.path, ranges)
        return [(start, one) for (start, _), one in zip(ranges, data, strict=True)]

    async def row_groups(self, columns: Sequence[str] | None = None) -> AsyncIterator[pa.Table]:
        for number in range(self.metadata.num_row_groups):
            yield await self.row_group(number, columns)

    def _ranges(self, number: int, wanted: set[str]) -> list[tuple[int, int]]:
        group = self.metadata.row_group(number)
        spans = []
        for place in range(group.num_columns):
            chunk = group.column(place)
            if chunk.path_in_schema.partition(".")[0] in wanted or chunk.path_in_schema in wanted:
                start = chunk.data_page_offset
                if chunk.dictionary_page_offset is not None:
                    start = min(start, chunk.dictionary_page_offset)
                spans.append((start, start + chunk.total_compressed_size))
        merged: list[tuple[int, int]] = []
        for start, end in sorted(spans):
            if merged and start - merged[-1][1] <= _GAP_BYTES:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged


class _Ranges(io.RawIOBase):
    """A file of which only some ranges are there: what Arrow is about to read."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self._size = size_bytes
        self._position = 0
        self._starts: list[int] = []
        self._data: list[bytes] = []

    def hold(self, ranges: Sequence[tuple[int, bytes]]) -> None:
        """These ranges in place of those held before."""
        self._starts = [start for start, _ in ranges]
        self._data = [data for _, data in ranges]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._size, self._position + size)
        if end <= self._position:
            return b""
        place = bisect_right(self._starts, self._position) - 1
        held = self._data[place] if place >= 0 else b""
        offset = self._position - (self._starts[place] if place >= 0 else 0)
        found = held[offset : offset + end - self._position]
        if len(found) != end - self._position:
            raise OSError(f"bytes {self._position} to {end} were not fetched")
        self._position = end
        return found
