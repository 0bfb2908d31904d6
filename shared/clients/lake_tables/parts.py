"""Arrow batches into Parquet files of about one size, streamed to the lake while they are made."""

import asyncio
import io
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

from shared.clients.lake_tables.arrow import as_nullable, assert_no_nulls, conform, schema_of
from shared.clients.lake_tables.stats import FileStatistics
from shared.clients.onelake.tree import LakeTree, StreamedFile, unique_suffix
from shared.errors import MigrationError
from shared.ports.tables import LakeColumn, PartFile, PartOptions

_SAMPLE_ROWS = 10_000
_ABORT_WITHIN_S = 10
_NAME_UNFIT = re.compile(r"[^A-Za-z0-9]+")


def part_prefix(name: str) -> str:
    """How the names of one attempt's files begin; never the same twice."""
    slug = _NAME_UNFIT.sub("-", name).strip("-")[:60]
    return f"part-{slug}-{unique_suffix()}" if slug else f"part-{unique_suffix()}"


class LakePartsWriter:
    """Implements ``ports.tables.PartsWriter``.

    Rows are collected up to a row group, which a thread encodes and compresses while the next one is collected; its
    bytes go out in blocks. One task at a time.

    Args:
        tree: The table's folder.
        place: Folder of the files below it, empty for the table's own.
        shown_place: The folder that ``PartFile.path`` names.
        prefix: From :func:`part_prefix`.
        columns: Of the files.
        options: Sizes and compression.
        announce: Awaited before the first file is begun.
    """

    def __init__(
        self,
        tree: LakeTree,
        place: str,
        shown_place: str,
        prefix: str,
        columns: Sequence[LakeColumn],
        options: PartOptions,
        announce: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._tree = tree
        self._place = place
        self._shown_place = shown_place
        self._prefix = prefix
        table_schema = schema_of(columns)
        self._schema = as_nullable(table_schema)
        self._never_null = [field.name for field in table_schema if not field.nullable]
        self._options = options
        self._announce = announce
        self._pending: list[pa.Table] = []
        self._pending_bytes = 0
        self._file: _OpenFile | None = None
        self._encoding: asyncio.Task[None] | None = None
        self._parts: list[PartFile] = []

    async def write(self, batch: pa.RecordBatch) -> None:
        """Raises ItemError, code ``null_in_not_null``."""
        if not batch.num_rows:
            return
        table = conform(pa.Table.from_batches([batch]), self._schema)
        assert_no_nulls(table, self._never_null)
        limit = self._options.row_group_bytes
        for piece in _pieces(table, limit):
            if self._pending and self._pending_bytes + piece.nbytes > limit:
                await self._write_group()
            self._pending.append(piece)
            self._pending_bytes += piece.nbytes

    async def close(self) -> list[PartFile]:
        """Finish the last file. Without rows: one file without rows, so that the schema is there."""
        if self._pending:
            await self._write_group()
        await self._encoded()
        if self._file is None and not self._parts:
            await self._begin()
        if self._file is not None:
            await self._finish(self._file)
        return self._parts

    async def abort(self) -> None:
        """Delete what was begun; never raises."""
        if self._encoding is not None:
            # A file that is being created just now is to be known here, so that it can be deleted.
            await asyncio.wait({self._encoding}, timeout=_ABORT_WITHIN_S)
            self._encoding.cancel()
            await asyncio.gather(self._encoding, return_exceptions=True)
            self._encoding = None
        if self._file is not None:
            await self._file.stream.abort()
            self._file = None
        for part in self._parts:
            with suppress(MigrationError):
                await self._tree.delete(_join(self._place, part.path.rpartition("/")[2]), etag="")
        self._parts, self._pending = [], []

    async def _write_group(self) -> None:
        await self._encoded()
        table = pa.concat_tables(self._pending)
        self._pending, self._pending_bytes = [], 0
        self._encoding = asyncio.create_task(self._encode(table))

    async def _encoded(self) -> None:
        """Wait for the row group in hand; raises what went wrong with it."""
        if self._encoding is not None:
            encoding, self._encoding = self._encoding, None
            await encoding

    async def _encode(self, table: pa.Table) -> None:
        file = self._file or await self._begin()
        await file.stream.write(await asyncio.to_thread(file.encode, table))
        if file.stream.size_bytes >= self._options.file_bytes:
            await self._finish(file)

    async def _begin(self) -> "_OpenFile":
        if self._announce is not None:
            announce, self._announce = self._announce, None
            await announce()
        name = f"{self._prefix}-{len(self._parts):05d}.parquet"
        stream = await self._tree.stream(_join(self._place, name))
        self._file = _OpenFile(name, stream, self._schema, self._options.compression)
        return self._file

    async def _finish(self, file: "_OpenFile") -> None:
        await file.stream.write(await asyncio.to_thread(file.end))
        written = await file.stream.close()
        self._file = None
        self._parts.append(
            PartFile(
                path=_join(self._shown_place, file.name),
                rows=file.statistics.rows,
                size_bytes=written.size_bytes,
                md5=written.md5,
                etag=written.etag,
                stats=file.statistics.as_json(),
            )
        )


class _OpenFile:
    def __init__(self, name: str, stream: StreamedFile, schema: pa.Schema, compression: str) -> None:
        self.name = name
        self.stream = stream
        self.statistics = FileStatistics(schema)
        self._schema = schema
        self._compression = compression.upper()
        self._sink = _Sink()
        self._writer: pq.ParquetWriter | None = None

    def encode(self, table: pa.Table) -> bytearray:
        """One row group; the bytes that it adds to the file."""
        self.statistics.add(table)
        self._begun(table).write_table(table, row_group_size=max(1, table.num_rows))
        return self._sink.taken()

    def end(self) -> bytearray:
        self._begun(None).close()
        return self._sink.taken()

    def _begun(self, first: pa.Table | None) -> pq.ParquetWriter:
        if self._writer is None:
            dictionary = repetitive(first) if first is not None else False
            self._writer = pq.ParquetWriter(
                self._sink, self._schema, compression=self._compression, version="2.6", write_page_index=True,
                store_schema=False, use_dictionary=dictionary,
            )  # fmt: skip
        return self._writer


def repetitive(table: pa.Table) -> list[str]:
    """Columns whose values come again and again: a dictionary makes others slow to write and read, and larger."""
    few = table.slice(0, _SAMPLE_ROWS)
    return [name for name in table.schema.names if len(few.column(name).unique()) * 2 <= len(few)]


class _Sink(io.RawIOBase):
    """What Arrow writes to; keeps the bytes until they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self._held = bytearray()
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        self._held += view
        self._written += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._written

    def taken(self) -> bytearray:
        held, self._held = self._held, bytearray()
        return held


def _pieces(table: pa.Table, limit_bytes: int) -> list[pa.Table]:
    """The rows in order, in pieces of about the limit at most."""
    count = -(-table.nbytes // limit_bytes)
    if count <= 1:
        return [table]
    rows = max(1, -(-table.num_rows // count))
    return [table.slice(start, rows) for start in range(0, table.num_rows, rows)]


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
