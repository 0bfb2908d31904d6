"""Names of tables as jobs write them, and what becomes of them in the lake."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate

_QUOTES = {"[": "]", '"': '"', "`": "`"}
_OUTPUT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_DELTA_UNFIT = re.compile(r"[^A-Za-z0-9_]+")


@dataclass(frozen=True, slots=True, order=True)
class TableName:
    """A table as the catalog has it. ``schema`` is empty where the database has none (SQLite), or for a query."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{_shown(self.schema)}.{_shown(self.name)}" if self.schema else _shown(self.name)


@dataclass(frozen=True, slots=True)
class _Part:
    text: str
    quoted: bool

    @property
    def is_pattern(self) -> bool:
        return not self.quoted and any(sign in self.text for sign in "*?")


def check_table_wish(text: str) -> None:
    """Raises ValueError where ``text`` names no table and is no pattern."""
    _parts(text)


def is_wish_for_many(text: str) -> bool:
    return any(part.is_pattern for part in _parts(text))


def matching(text: str, tables: Iterable[TableName], default_schema: str) -> list[TableName]:
    """The tables that a wish means, sorted.

    A bare name means the default schema. Case is looked at only where the catalog has two names that differ in nothing
    else; a pattern matches regardless of case, as most people's SQL Server would.
    """
    parts = _parts(text)
    schema, name = parts if len(parts) == 2 else (_Part(default_schema, quoted=True), parts[0])
    tables = list(tables)
    exact = [table for table in tables if _is(schema, table.schema, str) and _is(name, table.name, str)]
    if exact and not (schema.is_pattern or name.is_pattern):
        return sorted(exact)
    return sorted(
        table for table in tables if _is(schema, table.schema, str.casefold) and _is(name, table.name, str.casefold)
    )


def check_output_name(text: str) -> str:
    """A name of a folder, as a job may choose it. Raises ValueError."""
    if not _OUTPUT.fullmatch(text) or ".." in text or text.endswith("."):
        raise ValueError("must be a name of letters, digits, '_', '-' and '.', beginning with none of the last two")
    return text


def delta_name(table: TableName) -> str:
    """The table's name in the lakehouse, whose SQL endpoint takes letters, digits and underscores: ``dbo_Orders``."""
    words = [_DELTA_UNFIT.sub("_", part) for part in (table.schema, table.name) if part]
    return "_".join(words).strip("_") or "table"


def quote(name: str, opening: str, closing: str) -> str:
    """An identifier in quotes, with the closing one doubled. Raises ValueError for what no database takes."""
    if not name or "\x00" in name:
        raise ValueError(f"{name!r} is no name of a column or table")
    return opening + name.replace(closing, closing * 2) + closing


def _is(part: _Part, name: str, fold: object) -> bool:
    assert callable(fold)
    if part.is_pattern:
        return re.fullmatch(translate(fold(part.text)), fold(name)) is not None
    return bool(fold(part.text) == fold(name))


def _parts(text: str) -> list[_Part]:
    parts, position = [], 0
    while True:
        part, position = _part(text, position)
        parts.append(part)
        if position == len(text):
            break
        if text[position] != ".":
            raise ValueError(f"{text!r} is no table: after {text[:position]!r} a '.' is missing")
        position += 1
    if len(parts) > 2:
        raise ValueError(f"{text!r} has more than a schema and a table; the connection names server and database")
    return parts


def _part(text: str, position: int) -> tuple[_Part, int]:
    closing = _QUOTES.get(text[position : position + 1])
    if closing is None:
        end = text.find(".", position)
        end = len(text) if end < 0 else end
        word = text[position:end].strip()
        if not word or any(sign in word for sign in "[]\"`';\x00"):
            raise ValueError(f"{text!r} is no table; write schema.table, with quotes such as [my table] for odd names")
        return _Part(word, quoted=False), end
    word, position = "", position + 1
    while True:
        end = text.find(closing, position)
        if end < 0:
            raise ValueError(f"{text!r} is no table: {closing} is missing")
        word += text[position:end]
        if text[end + 1 : end + 2] != closing:
            break
        word, position = word + closing, end + 2
    if not word or "\x00" in word:
        raise ValueError(f"{text!r} is no table: a name is empty")
    return _Part(word, quoted=True), end + 1


def _shown(name: str) -> str:
    return name if re.fullmatch(r"[\w$#@-]+", name) else quote(name, "[", "]")
