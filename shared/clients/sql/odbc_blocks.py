"""Results over ODBC in blocks: columns bound to arrays that the driver fills, and turned into Arrow by whole columns.

The cursor is pyodbc's, and the functions are those of the driver manager that pyodbc itself has loaded. Sources: "Block
cursors", "SQLBindCol", "Using length and indicator values" of the ODBC programmer's reference.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from shared.clients.sql.classify import DriverError, Record
from shared.clients.sql.conform import arrow_type
from shared.errors import IntegrityMismatch, Unsupported
from shared.policy.sql.types import decimal_of
from shared.ports.tables import LakeColumn

if TYPE_CHECKING:
    import pyodbc

_ROWS_AT_MOST = 65_536
_NULL, _NO_TOTAL = -1, -4
_SUCCESS, _SUCCESS_WITH_INFO, _NO_DATA = 0, 1, 100
_HANDLE_STMT, _UNBIND = 3, 2
_ATTR_ROW_ARRAY_SIZE, _ATTR_ROWS_FETCHED = 27, 26
_IS_POINTER, _IS_UINTEGER = -4, -5

# SQL_C_..., and the width of one value.
_C_CHAR, _C_WCHAR, _C_BINARY = 1, -8, -2
_C_TYPES = {
    "bool": (-7, "u1"), "int16": (-15, "<i2"), "int32": (-16, "<i4"), "int64": (-25, "<i8"), "float": (7, "<f4"),
    "double": (8, "<f8"), "date32": (91, [("year", "<i2"), ("month", "<u2"), ("day", "<u2")]),
}  # fmt: skip
_TIMESTAMP = (93, [
    ("year", "<i2"), ("month", "<u2"), ("day", "<u2"), ("hour", "<u2"), ("minute", "<u2"), ("second", "<u2"),
    ("fraction", "<u4"),
])  # fmt: skip
# Types of unbounded or unknown length: SQL_LONGVARCHAR, SQL_WLONGVARCHAR, SQL_LONGVARBINARY, SQL Server's own for xml,
# variants, types of the CLR.
_LONG = (-1, -10, -4, -150, -151, -152)
_SIZED = (1, 12, -8, -9, -2, -3)


@dataclass(frozen=True, slots=True)
class BoundColumn:
    """A column of the result: its lake type, the C type it is fetched as, and the layout of one value."""

    lake: LakeColumn
    c_type: int
    values: np.dtype[Any]

    @property
    def width(self) -> int:
        return int(self.values.itemsize)


class _Api:
    """The driver manager that pyodbc is linked with; handles are good for no other."""

    def __init__(self) -> None:
        import pyodbc

        library = ctypes.CDLL(pyodbc.__file__)
        pointer, small, length = ctypes.c_void_p, ctypes.c_short, ctypes.c_ssize_t
        self.describe = library.SQLDescribeColW
        self.describe.argtypes = [pointer, ctypes.c_ushort, pointer, small, pointer, pointer, pointer, pointer, pointer]
        self.set_attribute = library.SQLSetStmtAttrW
        self.set_attribute.argtypes = [pointer, ctypes.c_int, pointer, ctypes.c_int]
        self.bind = library.SQLBindCol
        self.bind.argtypes = [pointer, ctypes.c_ushort, small, pointer, length, pointer]
        self.fetch = library.SQLFetch
        self.fetch.argtypes = [pointer]
        self.free = library.SQLFreeStmt
        self.free.argtypes = [pointer, ctypes.c_ushort]
        self.diagnose = library.SQLGetDiagRecW
        self.diagnose.argtypes = [small, pointer, small, pointer, pointer, pointer, small, pointer]
        for function in (self.describe, self.set_attribute, self.bind, self.fetch, self.free, self.diagnose):
            function.restype = small


_loaded: list[_Api] = []


def _api() -> _Api:
    if not _loaded:
        _loaded.append(_Api())
    return _loaded[0]


def layout(cursor: "pyodbc.Cursor", columns: Sequence[LakeColumn], *, longest: int) -> list[BoundColumn] | None:
    """How the columns of an executed statement are to be bound; None if one of them has no useful upper length."""
    bound = []
    values: Any
    for number, column in enumerate(columns, start=1):
        sql_type, size = _described(cursor, number)
        if column.type in _C_TYPES:
            c_type, values = _C_TYPES[column.type]
        elif column.type.startswith("timestamp"):
            c_type, values = _TIMESTAMP
        elif decimal := decimal_of(column.type):
            # Sign, point, and the zero at the end.
            c_type, values = _C_CHAR, f"({max(decimal[0], size) + 4},)u1"
        elif sql_type in _LONG or not 0 < size <= longest or (column.type == "binary" and sql_type not in _SIZED):
            return None
        elif column.type == "binary":
            c_type, values = _C_BINARY, f"({size},)u1"
        else:
            # PostgreSQL counts characters, which may take two units each; the zero at the end takes one more.
            units = size * (2 if longest < 8000 else 1) + 1
            c_type, values = _C_WCHAR, f"({units},)<u2"
        bound.append(BoundColumn(column, c_type, np.dtype(values)))
    return bound


def _described(cursor: "pyodbc.Cursor", number: int) -> tuple[int, int]:
    sql_type, digits, nullable = ctypes.c_short(), ctypes.c_short(), ctypes.c_short()
    # Not every driver leaves the name away where nobody wants it.
    name, length, size = ctypes.create_string_buffer(1026), ctypes.c_short(), ctypes.c_size_t()
    code = _api().describe(
        cursor.hstmt, number, name, 512, ctypes.byref(length), ctypes.byref(sql_type), ctypes.byref(size),
        ctypes.byref(digits), ctypes.byref(nullable),
    )  # fmt: skip
    _check(cursor, code)
    return sql_type.value, size.value


class BlockReader:
    """The rows of an executed statement. Buffers take about ``batch_bytes``, whatever the rows hold."""

    def __init__(self, cursor: "pyodbc.Cursor", columns: Sequence[BoundColumn], batch_bytes: int) -> None:
        self._cursor = cursor
        self._columns = columns
        width = sum(column.width + 8 for column in columns)
        self._rows = max(1, min(_ROWS_AT_MOST, batch_bytes // width))
        self._values = [np.zeros(self._rows, column.values) for column in columns]
        self._lengths = [np.zeros(self._rows, np.int64) for _ in columns]
        self._fetched = ctypes.c_size_t()

    def batches(self) -> Iterator[pa.RecordBatch]:
        api, handle = _api(), self._cursor.hstmt
        names = [column.lake.name for column in self._columns]
        self._set(_ATTR_ROW_ARRAY_SIZE, ctypes.c_void_p(self._rows), _IS_UINTEGER)
        self._set(_ATTR_ROWS_FETCHED, ctypes.cast(ctypes.byref(self._fetched), ctypes.c_void_p), _IS_POINTER)
        try:
            for number, column in enumerate(self._columns):
                values, lengths = self._values[number], self._lengths[number]
                code = api.bind(
                    handle, number + 1, column.c_type, values.ctypes.data, column.width, lengths.ctypes.data
                )
                _check(self._cursor, code)
            while True:
                code = api.fetch(handle)
                if code == _NO_DATA:
                    return
                # That a value was cut off comes as a warning; the lengths tell it too, and of which column.
                if code != _SUCCESS and (code != _SUCCESS_WITH_INFO or is_failure(_records(handle))):
                    raise _error(handle)
                rows = self._fetched.value
                arrays = [
                    _array(column, self._values[number], self._lengths[number], rows)
                    for number, column in enumerate(self._columns)
                ]
                yield pa.RecordBatch.from_arrays(arrays, names)
        finally:
            # What the driver would write to, or pyodbc read from, must not outlive this.
            api.free(handle, _UNBIND)
            self._set(_ATTR_ROWS_FETCHED, None, _IS_POINTER)
            self._set(_ATTR_ROW_ARRAY_SIZE, ctypes.c_void_p(1), _IS_UINTEGER)

    def _set(self, attribute: int, value: ctypes.c_void_p | None, kind: int) -> None:
        _check(self._cursor, _api().set_attribute(self._cursor.hstmt, attribute, value, kind))


def _check(cursor: "pyodbc.Cursor", code: int) -> None:
    if code not in (_SUCCESS, _SUCCESS_WITH_INFO):
        raise _error(cursor.hstmt)


def is_failure(records: Sequence[Record]) -> bool:
    """Whether a block that came with these is not whole: where a row of it failed, the fetch itself may succeed."""
    return any(record.state[:2] != "01" or record.state == "01S01" for record in records)


def _error(handle: ctypes.c_void_p | None) -> DriverError:
    return DriverError(_records(handle) or [Record("HY000", 0, "")])


def _records(handle: ctypes.c_void_p | None) -> list[Record]:
    records = []
    for number in range(1, 9):
        state, text = ctypes.create_string_buffer(12), ctypes.create_string_buffer(4096)
        native, length = ctypes.c_int(), ctypes.c_short()
        code = _api().diagnose(
            _HANDLE_STMT, handle, number, state, ctypes.byref(native), text, 2048, ctypes.byref(length)
        )  # fmt: skip
        if code not in (_SUCCESS, _SUCCESS_WITH_INFO):
            break
        said = text.raw[: 2 * max(0, min(length.value, 2047))].decode("utf-16-le", "replace")
        records.append(Record(state.raw[:10].decode("utf-16-le", "replace"), native.value, said))
    return records


# -- columns -----------------------------------------------------------------------------------------------------------


def _array(column: BoundColumn, values: "np.ndarray[Any, Any]", lengths: "np.ndarray[Any, Any]", rows: int) -> pa.Array:
    values, lengths = values[:rows], lengths[:rows]
    missing = lengths == _NULL
    kind = arrow_type(column.lake.type)
    if column.c_type in (_C_CHAR, _C_WCHAR, _C_BINARY):
        room = column.width - {_C_CHAR: 1, _C_WCHAR: 2, _C_BINARY: 0}[column.c_type]
        if bool(np.any(lengths > room)) or bool(np.any(lengths == _NO_TOTAL)):
            raise IntegrityMismatch(
                f"the driver gives values of column {column.lake.name} that are longer than it said", code="value_cut",
                subject=column.lake.name,
            )  # fmt: skip
        return _sized(column, values, np.where(missing, 0, lengths), missing)
    if column.lake.type == "bool":
        return pa.array(values.astype(bool), pa.bool_(), mask=missing)
    if column.lake.type == "date32":
        return pa.array(_days(values, missing).astype(np.int32), pa.int32(), mask=missing).view(kind)
    if column.lake.type.startswith("timestamp"):
        return pa.array(_microseconds(values, missing), pa.int64(), mask=missing).view(kind)
    # Arrow would keep the driver's own buffer, which the next block overwrites.
    return pa.array(values.copy(), kind, mask=missing)


def _days(values: "np.ndarray[Any, Any]", missing: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    years = np.where(missing, 1970, values["year"]).astype("i8") - 1970
    months = np.where(missing, 1, values["month"]).astype("i8") - 1
    days = np.where(missing, 1, values["day"]).astype("i8") - 1
    first = (years * 12 + months).astype("M8[M]").astype("M8[D]").astype("i8")
    return np.asarray(first + days)


def _microseconds(values: "np.ndarray[Any, Any]", missing: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Rounded down: a seventh digit is told by a column of its own."""
    seconds = values["hour"].astype("i8") * 3600 + values["minute"].astype("i8") * 60 + values["second"]
    day = _days(values, missing) * 86_400_000_000
    return np.asarray(np.where(missing, 0, day + seconds * 1_000_000 + values["fraction"].astype("i8") // 1000))


def _sized(
    column: BoundColumn,
    values: "np.ndarray[Any, Any]",
    lengths: "np.ndarray[Any, Any]",
    missing: "np.ndarray[Any, Any]",
) -> pa.Array:
    """Text, binary, or a decimal's digits, gathered from an array of fixed width; ``lengths`` in bytes."""
    units = lengths // 2 if column.c_type == _C_WCHAR else lengths
    widest = int(units.max(initial=0))
    used = np.arange(widest) < units[:, None]
    gathered = values[:, :widest][used]
    if column.c_type == _C_WCHAR:
        data, ends = _utf8(column, gathered, np.cumsum(units))
    else:
        data, ends = gathered.tobytes(), np.cumsum(units)
    offsets = np.zeros(len(units) + 1, np.int32)
    offsets[1:] = ends
    bits = pa.py_buffer(np.packbits(~missing, bitorder="little").tobytes())
    stored = pa.binary() if column.lake.type == "binary" else pa.string()
    return pa.Array.from_buffers(stored, len(units), [bits, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data)])


def _utf8(
    column: BoundColumn, units: "np.ndarray[Any, Any]", ends: "np.ndarray[Any, Any]"
) -> tuple[bytes, "np.ndarray[Any, Any]"]:
    """UTF-16 of all rows as UTF-8, and where each row ends there."""
    if not units.size or int(units.max()) < 0x80:
        return units.astype(np.uint8).tobytes(), ends
    try:
        data = units.tobytes().decode("utf-16-le").encode()
    except UnicodeDecodeError:
        raise _not_unicode(column) from None
    high, low = (units & 0xFC00) == 0xD800, (units & 0xFC00) == 0xDC00
    # Halves at the seam of two rows would pass as a pair.
    starts = np.concatenate(([0], ends[:-1]))
    starts, lasts = starts[starts < ends], ends[starts < ends] - 1
    if bool(np.any(low[starts])) or bool(np.any(high[lasts])):
        raise _not_unicode(column)
    # Of a pair each half counts for two of its four bytes.
    taken = 1 + (units >= 0x80).astype(np.int8) + ((units >= 0x800) & ~high & ~low)
    total = np.concatenate(([0], np.cumsum(taken)))
    return data, total[ends]


def _not_unicode(column: BoundColumn) -> Unsupported:
    from shared.clients.sql.odbc import not_unicode

    return not_unicode(column.lake.name)
