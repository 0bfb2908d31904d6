"""What becomes of SQL Server's types in the lake, and how their values are written as text and as literals.

=========================== ==================== ===================================================================
SQL Server                  lake                 how
=========================== ==================== ===================================================================
bit                         bool
tinyint, smallint           int16                a tinyint has no sign, so it is no byte of Delta's
int, bigint                 int32, int64
decimal(p,s), numeric(p,s)  decimal128(p, s)     up to 38 digits
money, smallmoney           decimal128(19|10, 4)
float, real                 double, float        bit for bit
char, varchar, text,        string               all of it, trailing spaces too; whatever the collation's code page
nchar, nvarchar, ntext
xml, json, vector           string               as the server writes them
binary, varbinary, image    binary               all of it
timestamp, rowversion       binary               eight bytes, big-endian, so that their order is the bytes'
date                        date32
smalldatetime               timestamp[us]
datetime                    timestamp[us]        in milliseconds, as the server shows its 1/300 s: .000, .003, .007
datetime2(0..6)             timestamp[us]
datetime2(7)                timestamp[us]        and ``<name>_100ns``, the seventh digit; or ISO text, or cut off
                            + int16
datetimeoffset(0..7)        timestamp[us, UTC]   and ``<name>_offset_min``, and ``<name>_100ns`` where it has seven
                            + int16 (+ int16)    digits; or ISO text, or UTC alone
time(0..7)                  string               ``HH:MM:SS.fffffff``
uniqueidentifier            string               lower case
hierarchyid                 string               ``/1/3/``
geography, geometry         binary + int32       WKB with Z and M, and ``<name>_srid``
sql_variant                 string + string      the value, and ``<name>_base_type``
other types of the CLR      binary               as the server serializes them
=========================== ==================== ===================================================================

Sources: "Data types (Transact-SQL)", "CAST and CONVERT", "AsBinaryZM", "SQL_VARIANT_PROPERTY".
"""

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Context, Decimal, InvalidOperation

from shared.errors import Unsupported
from shared.model.sql_job import Types
from shared.policy.sql.types import OFFSET_SUFFIX, TICKS_SUFFIX, decimal
from shared.ports.tables import LakeColumn

SRID_SUFFIX = "_srid"
BASE_TYPE_SUFFIX = "_base_type"

_TYPE = re.compile(r"([a-z_0-9]+)(?:\((max|\d+)(?:,(\d+))?\))?(?: collate (\w+))?")
_INTEGERS = {
    "tinyint": ("int16", 0, 255), "smallint": ("int16", -(2**15), 2**15 - 1), "int": ("int32", -(2**31), 2**31 - 1),
    "bigint": ("int64", -(2**63), 2**63 - 1),
}  # fmt: skip
_DECIMALS = {"money": (19, 4), "smallmoney": (10, 4)}
_TEXT = ("char", "varchar", "nchar", "nvarchar")
_LONG_TEXT = ("text", "ntext", "xml", "json", "vector")
_BINARY = ("binary", "varbinary", "timestamp", "rowversion")
_MOMENTS = ("datetime", "smalldatetime", "datetime2")
_SPATIAL = ("geography", "geometry")
_SCALED = ("time", "datetime2", "datetimeoffset")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(?::(\d\d)(?:\.(\d{1,7}))?)?)?(Z|[+-]\d\d:\d\d)?")
_TIME = re.compile(r"\d\d:\d\d:\d\d(?:\.\d{1,7})?")
_GUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_HEX = re.compile(r"0x((?:[0-9a-fA-F]{2})*)")
# Python's usual arithmetic, abs() too, rounds to 28 digits; the server's decimals have 38.
_EXACT = Context(prec=200)


@dataclass(frozen=True, slots=True)
class SqlType:
    """A type with its parameters; ``length`` in characters, or bytes of binary, -1 for ``max``."""

    name: str
    length: int = 0
    scale: int = 0
    collation: str = ""

    @property
    def is_long(self) -> bool:
        return self.length < 0 or self.name in (*_LONG_TEXT, "image", "sql_variant", *_SPATIAL, "clr")

    @property
    def declared(self) -> str:
        """As T-SQL takes it in a CAST."""
        if self.name in ("decimal", "numeric"):
            return f"{self.name}({self.length},{self.scale})"
        if self.name in _SCALED:
            return f"{self.name}({self.length})"
        if self.name in (*_TEXT, "binary", "varbinary"):
            return f"{self.name}({'max' if self.length < 0 else self.length})"
        return "binary(8)" if self.name in ("timestamp", "rowversion") else self.name


def type_text(name: str, max_length: int, precision: int, scale: int, collation: str | None) -> str:
    """A type as reports show it and :func:`parsed` takes it back, from the columns of ``sys.columns``."""
    parameters = ""
    if name in ("decimal", "numeric"):
        parameters = f"({precision},{scale})"
    elif name in _SCALED:
        parameters = f"({scale})"
    elif name in (*_TEXT, "binary", "varbinary"):
        wide = 2 if name.startswith("n") else 1
        parameters = "(max)" if max_length < 0 else f"({max_length // wide})"
    return name + parameters + (f" collate {collation}" if collation else "")


def parsed(text: str) -> SqlType:
    match = _TYPE.fullmatch(text)
    if match is None:
        return SqlType("clr")
    length = -1 if match[2] == "max" else int(match[2] or 0)
    return SqlType(match[1], length, int(match[3] or 0), match[4] or "")


def is_known(text: str) -> bool:
    """Whether a column of a type can be carried at all."""
    kind = parsed(text)
    known = (*_INTEGERS, *_DECIMALS, *_TEXT, *_LONG_TEXT, *_BINARY, *_MOMENTS, *_SPATIAL, "bit", "decimal", "numeric",
             "float", "real", "image", "date", "time", "datetimeoffset", "uniqueidentifier", "hierarchyid",
             "sql_variant", "clr")  # fmt: skip
    return kind.name in known


# -- what is written ---------------------------------------------------------------------------------------------------


def lake_columns(
    name: str, text: str, nullable: bool, types: Types, taken: Collection[str]
) -> tuple[tuple[LakeColumn, ...], str]:
    """The columns that a column becomes, and what a person should know; added names stay clear of ``taken``."""
    kind = parsed(text)
    lake, note = _plain(kind, types)
    columns = [LakeColumn(name, lake, nullable)]
    for suffix, extra in _beside(kind, types):
        free = name + suffix
        while free.casefold() in taken:
            free += "_"
        columns.append(LakeColumn(free, extra, nullable))
    return tuple(columns), note


def _plain(kind: SqlType, types: Types) -> tuple[str, str]:
    name = kind.name
    if name in _INTEGERS:
        return _INTEGERS[name][0], ""
    if name in ("decimal", "numeric"):
        return decimal(kind.length, kind.scale), ""
    if name in _DECIMALS:
        return decimal(*_DECIMALS[name]), ""
    if name in ("datetime2", "datetimeoffset"):
        as_text, note = _moment_wishes(kind, types)
        return ("string" if as_text else "timestamp[us]" if name == "datetime2" else "timestamp[us, UTC]"), note
    if name in (*_BINARY, "image", *_SPATIAL):
        return "binary", ""
    if name == "clr":
        return "binary", "a type of the CLR, as the server serializes it"
    return {
        "bit": "bool", "float": "double", "real": "float", "date": "date32", "datetime": "timestamp[us]",
        "smalldatetime": "timestamp[us]",
    }.get(name, "string"), ""  # fmt: skip


def _moment_wishes(kind: SqlType, types: Types) -> tuple[bool, str]:
    """Whether it is to be text, and what is lost."""
    finest, notes = kind.length == 7, []
    if finest and types.sub_microsecond == "text":
        return True, ""
    if finest and types.sub_microsecond == "truncate":
        notes.append("cut off at the microsecond")
    if kind.name == "datetimeoffset":
        if types.offset == "text":
            return True, ""
        if types.offset == "utc":
            notes.append("without the offset from UTC")
    return False, "; ".join(notes)


def _beside(kind: SqlType, types: Types) -> list[tuple[str, str]]:
    if kind.name in _SPATIAL:
        return [(SRID_SUFFIX, "int32")]
    if kind.name == "sql_variant":
        return [(BASE_TYPE_SUFFIX, "string")]
    beside: list[tuple[str, str]] = []
    if kind.name in ("datetime2", "datetimeoffset") and not _moment_wishes(kind, types)[0]:
        if kind.length == 7 and types.sub_microsecond == "split":
            beside.append((TICKS_SUFFIX, "int16"))
        if kind.name == "datetimeoffset" and types.offset == "split":
            beside.append((OFFSET_SUFFIX, "int16"))
    return beside


def projected(text: str, value: str, types: Types) -> tuple[str, ...]:
    """SQL for each of :func:`lake_columns`."""
    kind = parsed(text)
    plain = _projections.get(kind.name)
    first = plain(value, kind) if plain else value
    if kind.name == "datetime2" and _moment_wishes(kind, types)[0]:
        return (f"STUFF(CONVERT(varchar(27), {value}, 121), 11, 1, 'T')",)
    if kind.name == "datetimeoffset":
        if _moment_wishes(kind, types)[0]:
            return (f"STUFF(REPLACE(CONVERT(varchar(34), {value}, 121), ' ', ''), 11, 0, 'T')",)
        first = f"CAST(SWITCHOFFSET({value}, '+00:00') AS datetime2({kind.length}))"
    expressions = [first]
    for suffix, _ in _beside(kind, types):
        expressions.append(_beside_projections[suffix](value))
    return tuple(expressions)


def _wide(value: str, kind: SqlType) -> str:
    """Text as the server itself widens it; only where that would make it long is the driver left to do it."""
    if kind.length < 0:
        return f"CAST({value} AS nvarchar(max))"
    return f"CAST({value} AS nvarchar({kind.length}))" if kind.length <= 4000 else value


_projections: dict[str, Callable[[str, SqlType], str]] = {
    "tinyint": lambda value, _: f"CAST({value} AS smallint)",
    "money": lambda value, _: f"CAST({value} AS decimal(19,4))",
    "smallmoney": lambda value, _: f"CAST({value} AS decimal(10,4))",
    "char": _wide,
    "varchar": _wide,
    "text": lambda value, _: f"CAST({value} AS nvarchar(max))",
    "ntext": lambda value, _: f"CAST({value} AS nvarchar(max))",
    "xml": lambda value, _: f"CAST({value} AS nvarchar(max))",
    "json": lambda value, _: f"CAST({value} AS nvarchar(max))",
    "vector": lambda value, _: f"CAST({value} AS nvarchar(max))",
    "timestamp": lambda value, _: f"CAST({value} AS binary(8))",
    "rowversion": lambda value, _: f"CAST({value} AS binary(8))",
    "image": lambda value, _: f"CAST({value} AS varbinary(max))",
    "clr": lambda value, _: f"CAST({value} AS varbinary(max))",
    "smalldatetime": lambda value, _: f"CAST({value} AS datetime2(0))",
    # Straight to datetime2 it would be .0033333 or .0030000, depending on the database's compatibility level.
    "datetime": lambda value, _: f"CONVERT(datetime2(3), CONVERT(varchar(23), {value}, 126), 126)",
    "time": lambda value, _: f"CONVERT(varchar(16), CAST({value} AS time(7)), 121)",
    "uniqueidentifier": lambda value, _: f"LOWER(CONVERT(char(36), {value}))",
    "hierarchyid": lambda value, _: f"{value}.ToString()",
    "geography": lambda value, _: f"{value}.AsBinaryZM()",
    "geometry": lambda value, _: f"{value}.AsBinaryZM()",
    "sql_variant": lambda value, _: _variant(value),
}
_beside_projections: dict[str, Callable[[str], str]] = {
    TICKS_SUFFIX: lambda value: f"CAST(DATEPART(nanosecond, {value}) % 1000 / 100 AS smallint)",
    OFFSET_SUFFIX: lambda value: f"CAST(DATEPART(tzoffset, {value}) AS smallint)",
    SRID_SUFFIX: lambda value: f"{value}.STSrid",
    BASE_TYPE_SUFFIX: lambda value: f"CAST(SQL_VARIANT_PROPERTY({value}, 'BaseType') AS nvarchar(128))",
}


def _variant(value: str) -> str:
    """Text that loses nothing of any type that a variant can hold."""
    cases = [
        (("float", "real"), f"CONVERT(nvarchar(max), CAST({value} AS float), 3)"),
        (("money", "smallmoney"), f"CONVERT(nvarchar(max), CAST({value} AS money), 2)"),
        (("binary", "varbinary", "timestamp"), f"CONVERT(nvarchar(max), CAST({value} AS varbinary(8000)), 1)"),
        (("datetime",), f"CONVERT(nvarchar(max), CAST({value} AS datetime), 126)"),
        (("smalldatetime", "datetime2"), f"CONVERT(nvarchar(max), CAST({value} AS datetime2(7)), 126)"),
        (("datetimeoffset",), f"CONVERT(nvarchar(max), CAST({value} AS datetimeoffset(7)), 126)"),
        (("date",), f"CONVERT(nvarchar(max), CAST({value} AS date), 23)"),
        (("time",), f"CONVERT(nvarchar(max), CAST({value} AS time(7)), 121)"),
        (("uniqueidentifier",), f"LOWER(CONVERT(nvarchar(36), CAST({value} AS uniqueidentifier)))"),
        (("char", "varchar"), f"CAST(CAST({value} AS varchar(8000)) AS nvarchar(max))"),
    ]
    # As a variant itself the name would be compared by collation first: it equals no text of another one.
    base = _beside_projections[BASE_TYPE_SUFFIX](value)
    whens = " ".join(f"WHEN {base} IN ({', '.join(repr(name) for name in names)}) THEN {sql}" for names, sql in cases)
    # A variant is cast to no type without a length.
    return f"CASE {whens} ELSE CAST({value} AS nvarchar(4000)) END"


# -- values as text, and back ------------------------------------------------------------------------------------------


def as_text(column: str, text: str, value: str) -> str:
    """SQL for a value's text, from which :func:`literal` makes the same value again.

    Raises:
        Unsupported: code ``column_unfit``: values of the type have no order to rely on, or are too long.
    """
    kind = parsed(text)
    name = kind.name
    if name == "bit":
        return f"CONVERT(varchar(1), {value})"
    if name in (*_INTEGERS, "decimal", "numeric"):
        return f"CONVERT(varchar(41), {value})"
    if name in _DECIMALS:
        return f"CONVERT(varchar(41), {value}, 2)"
    if name in ("float", "real"):
        return f"CONVERT(varchar(30), {value if name == 'float' else f'CAST({value} AS float)'}, 3)"
    if name == "date":
        return f"CONVERT(varchar(10), {value}, 23)"
    if name == "time":
        return f"CONVERT(varchar(16), {value}, 121)"
    if name in _MOMENTS:
        return f"CONVERT(varchar(27), {value}, 126)"
    if name == "datetimeoffset":
        return f"CONVERT(varchar(34), {value}, 127)"
    if name == "uniqueidentifier":
        return f"LOWER(CONVERT(varchar(36), {value}))"
    if name in _BINARY and not kind.is_long:
        return f"CONVERT(varchar(max), CAST({value} AS {_binary(kind)}), 1)"
    if name in _TEXT and not kind.is_long:
        return f"CAST({value} AS nvarchar(4000))" if kind.length <= 4000 else f"CAST({value} AS nvarchar(max))"
    raise _no_order(column, text)


def literal(column: str, text: str, value: str) -> str:
    """SQL for the value that a text means, in the column's own type, so that an index of it can be used.

    Raises:
        Unsupported: codes ``value_unfit``, ``column_unfit``.
    """
    kind = parsed(text)
    name, declared = kind.name, kind.declared
    if name == "bit" and value.lower() in ("0", "1", "true", "false"):
        return f"CAST({1 if value.lower() in ('1', 'true') else 0} AS bit)"
    if name in _INTEGERS and re.fullmatch(r"[+-]?\d{1,19}", value):
        _, least, greatest = _INTEGERS[name]
        # Beyond the type's range, a comparison is still one: with the next wider type.
        return f"CAST({int(value)} AS {declared if least <= int(value) <= greatest else 'decimal(38,0)'})"
    if name in (*_INTEGERS, "decimal", "numeric", *_DECIMALS) and (number := _number(value)) is not None:
        fits = name in ("decimal", "numeric") and _fits(number, kind.length, kind.scale)
        fits = fits or (name in _DECIMALS and _fits(number, *_DECIMALS[name]))
        return f"CAST('{number:f}' AS {declared})" if fits else _any_decimal(column, text, number)
    if name in ("float", "real") and re.fullmatch(r"[+-]?\d+(\.\d+)?([eE][+-]?\d{1,3})?", value.strip()):
        return f"CAST('{value.strip()}' AS {declared})"
    if name == "date" and (moment := _MOMENT.fullmatch(value)) and _is_day(moment[1]):
        return f"CONVERT(date, '{moment[1]}', 23)"
    if name == "time" and _TIME.fullmatch(value):
        return f"CAST('{value}' AS {declared})"
    if name in _MOMENTS and (moment := _MOMENT.fullmatch(value)) and _is_day(moment[1]) and not moment[5]:
        return f"CONVERT({declared}, '{_iso(moment, 7 if name == 'datetime2' else 3)}', 126)"
    if name == "datetimeoffset" and (moment := _MOMENT.fullmatch(value)) and _is_day(moment[1]):
        return f"CONVERT({declared}, '{_iso(moment, 7)}{moment[5] or 'Z'}', 127)"
    if name == "uniqueidentifier" and _GUID.fullmatch(value):
        return f"CAST('{value}' AS uniqueidentifier)"
    if name in _BINARY and not kind.is_long and (digits := _HEX.fullmatch(value)):
        return f"CAST(0x{digits[1]} AS {_binary(kind)})"
    if name in _TEXT and not kind.is_long and "\x00" not in value:
        return _text_literal(kind, value)
    if name not in (*_INTEGERS, *_DECIMALS, *_TEXT, *_BINARY, *_MOMENTS, "bit", "decimal", "numeric", "float", "real",
                    "date", "time", "datetimeoffset", "uniqueidentifier") or kind.is_long:  # fmt: skip
        raise _no_order(column, text)
    raise Unsupported(
        f"{value[:100]!r} is no value of column {column}, which is {text}", code="value_unfit", subject=column
    )


def earlier(column: str, text: str, value: str, seconds: float) -> str:
    """SQL for what lies so many seconds, or of a number so much, before a value, or a little before that.

    Raises:
        Unsupported: code ``lookback``: the column is neither a time nor a number.
    """
    kind = parsed(text)
    if kind.name in _INTEGERS:
        return literal(column, text, str(int(value) - min(math.ceil(seconds), 2**62)))
    number = _number(value)
    if kind.name in ("decimal", "numeric", *_DECIMALS) and number is not None:
        return literal(column, text, f"{_EXACT.subtract(number, Decimal(repr(seconds))):f}")
    if kind.name in ("float", "real"):
        shown = repr(seconds)
        return f"({literal(column, text, value)} - {shown if 'e' in shown else shown + 'e0'})"
    moment = _MOMENT.fullmatch(value)
    if kind.name not in (*_MOMENTS, "date", "datetimeoffset") or moment is None:
        raise Unsupported(f"{column} is {text}, and lookback needs a time or a number", code="lookback")
    whole = datetime.fromisoformat(f"{moment[1]}T{moment[2] or '00:00'}:{moment[3] or '00'}")
    first = {"datetime": "1753-01-01", "smalldatetime": "1900-01-01"}.get(kind.name, "0001-01-01")
    least = datetime.fromisoformat(first)
    # Whole seconds down: a window that begins a little earlier delivers a row once more, and loses none.
    reach_s = math.floor((whole - least).total_seconds())
    whole = whole - timedelta(seconds=min(math.ceil(seconds), reach_s))
    if kind.name == "smalldatetime":
        whole = whole.replace(second=0)
    shown = whole.date().isoformat() if kind.name == "date" else whole.isoformat() + (moment[5] or "")
    return literal(column, text, shown)


def _binary(kind: SqlType) -> str:
    return "binary(8)" if kind.name in ("timestamp", "rowversion") else kind.declared


def _text_literal(kind: SqlType, value: str) -> str:
    quoted = "N'" + value.replace("'", "''") + "'"
    if kind.name in ("nchar", "nvarchar"):
        return quoted
    # Compared as nvarchar, a varchar column would be widened row by row, and no index of it be used.
    if kind.collation:
        return f"CAST({quoted} COLLATE {kind.collation} AS varchar(8000))"
    return f"CAST({quoted} AS varchar(8000))"


def _number(value: str) -> Decimal | None:
    try:
        number = Decimal(value.strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() and len(f"{number:f}") <= 80 else None


def _fits(number: Decimal, precision: int, scale: int) -> bool:
    whole, _, fraction = f"{number.copy_abs():f}".partition(".")
    return len(whole.lstrip("0")) <= precision - scale and len(fraction.rstrip("0")) <= scale


def _any_decimal(column: str, text: str, number: Decimal) -> str:
    """A number that the column's own type cannot hold, such as a rule's limit, compared as a decimal of its own."""
    whole, _, fraction = f"{number.copy_abs():f}".partition(".")
    scale = len(fraction.rstrip("0"))
    if len(whole.lstrip("0")) + scale > 38:
        raise Unsupported(f"{number} has more than 38 digits; column {column} is {text}", code="value_unfit",
                          subject=column)  # fmt: skip
    return f"CAST('{number:f}' AS decimal(38,{scale}))"


def _is_day(text: str) -> bool:
    try:
        return bool(datetime.fromisoformat(text))
    except ValueError:
        return False


def _iso(moment: re.Match[str], digits: int) -> str:
    fraction = f".{moment[4][:digits]}" if moment[4] else ""
    return f"{moment[1]}T{moment[2] or '00:00'}:{moment[3] or '00'}{fraction}"


def _no_order(column: str, text: str) -> Unsupported:
    return Unsupported(
        f"column {column} is {text}; positions, ranges and limits need a number, a time, short text, short binary or a "
        "uniqueidentifier",
        code="column_unfit", subject=column,
    )  # fmt: skip
