# Statements are put together here; what goes into them is quoted or checked.
# ruff: noqa: S608
"""What differs between databases: how a selection becomes SQL, how the catalog is read, how one moment is held.

SQL text is made here and in the dialects, nowhere else. Names are quoted and values are literals that
:meth:`Dialect.literal` has checked, so nothing of a job reaches a statement as it stands but ``query`` and the ``sql``
of a rule, which are SQL of the user's own; they stay inside of parentheses of ours (:mod:`shared.clients.sql.own_sql`).

A dialect implements what is abstract. The rest are hooks with an answer that most databases understand:

- :meth:`Dialect.source`, :meth:`Dialect.reference`, :meth:`Dialect.conditions` and :meth:`Dialect.change_columns`
  decide where rows come from; a window of tracking or CDC replaces them.
- :meth:`Dialect.projection` and :meth:`Dialect.checksum` decide what a column becomes and how the database sums it.
- :meth:`Dialect.begin` decides how sessions come to see one moment.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from shared.clients.sql.own_sql import checked_condition, checked_query
from shared.errors import MigrationError, NotFound, Unsupported
from shared.model.sql_job import Types
from shared.policy.sql.checksum import MD5_UTF_8, Definition, P
from shared.policy.sql.names import TableName, quote
from shared.ports.tables import (
    RULE_COLUMN,
    Change,
    DatabaseFacts,
    KeyRange,
    LakeColumn,
    RowRule,
    Selection,
    SourceColumn,
    TableShape,
    Window,
)

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = "t"
"""Alias of the rows of a table in every statement; a rule's SQL may use it."""
INTEGER_DIGITS = 18
"""A decimal of no more digits may be projected as a 64-bit integer: its digits without the point."""
COLUMN_TYPES = "column_types"
"""Key of ``TableShape.facts``: the source's type of every column, also of those that a job does not want."""
_SUMMED_AT_ONCE = 400


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with the values of its parameters (``?``), and the columns that its rows become in the lake, in order."""

    sql: str
    parameters: tuple[Any, ...] = ()
    columns: tuple[LakeColumn, ...] = ()


class DriverConnection(Protocol):
    """One connection, in autocommit: a transaction is begun by a statement. One thread at a time but for ``cancel``."""

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """A statement whose rows, if it has any, are of no interest."""

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a small result."""

    def batches(self, statement: Statement, *, batch_bytes: int) -> "Iterator[pa.RecordBatch]":
        """A large result, streamed in batches of about so many bytes. Closing the iterator ends the statement.

        Columns come in the statement's order; their types need only be such that a safe cast leads to the lake's.
        """

    def cancel(self) -> None:
        """Break off the statement that another thread is executing, if there is one."""

    def close(self) -> None: ...


class Driver(Protocol):
    """Opens connections, and knows what its library's exceptions mean. Thread-safe."""

    errors: tuple[type[Exception], ...]
    """What its library raises."""

    def connect(self) -> DriverConnection: ...

    def classify(self, error: Exception, subject: str) -> MigrationError:
        """What an exception of ``errors`` means; never with a secret."""


class Dialect(ABC):
    """One kind of database. Without state of its own but for the job's wishes about types."""

    name: ClassVar[str]
    definition: Definition = MD5_UTF_8
    """Of the checksums; known when a connection has been prepared."""
    quotes: ClassVar[tuple[str, str]] = ('"', '"')
    count: ClassVar[str] = "COUNT"
    """The function that counts in 64 bits."""
    spare: ClassVar[int] = 0
    """Connections that :meth:`begin` needs beside those of several sessions that are to see one moment."""
    hint: str = ""
    """What stands behind every statement that reads rows."""
    fence: ClassVar[str] = ""
    """What stands behind rows that are to be made once, however often the statement around them speaks of a value."""

    def __init__(self, types: Types) -> None:
        self.types = types

    # -- the catalog -------------------------------------------------------------------------------------------------

    @abstractmethod
    def facts(self, connection: DriverConnection) -> DatabaseFacts: ...

    @abstractmethod
    def tables(self, connection: DriverConnection) -> Sequence[TableName]:
        """Tables and views that the identity may read, without those of the system."""

    @abstractmethod
    def describe(self, connection: DriverConnection, table: TableName, query: str | None) -> TableShape:
        """Raises NotFound, AccessDenied, Unsupported."""

    # -- sessions ----------------------------------------------------------------------------------------------------

    def prepare(self, connection: DriverConnection) -> None:
        """Settings of a fresh connection on which statements depend, such as a format of dates."""
        return

    @abstractmethod
    def begin(
        self, connections: Sequence[DriverConnection], *, consistent: bool, for_table: TableShape | None
    ) -> tuple[int, bool]:
        """Begin a transaction in the first of ``connections``: how many, and whether each sees one moment's state.

        With ``consistent`` that moment is the same for all of them. Fewer may be begun, but never none.

        Raises:
            Unsupported: code ``no_snapshot``.
        """

    def recover(self, connection: DriverConnection) -> None:
        """Make a transaction usable again in which a statement failed, or was broken off. What it sees is the same."""
        return

    # -- names and values --------------------------------------------------------------------------------------------

    def quoted(self, name: str) -> str:
        try:
            return quote(name, *self.quotes)
        except ValueError as error:
            raise Unsupported(str(error), code="name_unfit", subject=name) from None

    def table(self, table: TableName) -> str:
        return ".".join(self.quoted(part) for part in (table.schema, table.name) if part)

    def text(self, value: str) -> str:
        """A literal of text."""
        if "\x00" in value:
            raise Unsupported("a value with a zero character cannot be compared with", code="value_unfit")
        return "'" + value.replace("'", "''") + "'"

    @abstractmethod
    def literal(self, column: SourceColumn, text: str) -> str:
        """A value of a column, from the text that :meth:`as_text` made of it; with no loss.

        Raises:
            Unsupported: code ``value_unfit``: the text is none of the column's type.
        """

    def as_text(self, column: SourceColumn, value: str) -> str:
        """SQL for the text of a value of a column, in a form that :meth:`literal` takes back without loss."""
        return f"CAST({value} AS VARCHAR(4000))"

    def earlier(self, column: SourceColumn, text: str, seconds: float) -> str:
        """SQL for what lies ``seconds`` (of a number: so much) before the value that ``text`` means, or before that."""
        raise Unsupported(f"{column.name} is {column.type}, and lookback needs a time or a number", code="lookback")

    def column(self, shape: TableShape, name: str) -> SourceColumn:
        """A column by name: as it is written, else regardless of case. Also one that the job does not read.

        Raises:
            NotFound: code ``column_not_found``.
        """
        known = {column.name: column for column in shape.columns}
        types = shape.facts.get(COLUMN_TYPES, {})
        assert isinstance(types, dict)
        for match in (str, str.casefold):
            for candidate in (*known, *types):
                if match(candidate) == match(name):
                    return known.get(candidate) or self.unread(candidate, types[candidate])
        raise NotFound(
            f"{shape.table} has no column {name}; it has {', '.join(sorted({*known, *types}))[:500]}",
            code="column_not_found",
            subject=str(shape.table),
        )

    def unread(self, name: str, source_type: str) -> SourceColumn:
        """A column that only conditions speak of."""
        return SourceColumn(name, source_type, nullable=True, lake=())

    # -- rows --------------------------------------------------------------------------------------------------------

    def source(self, selection: Selection) -> str:
        """What stands behind FROM: the rows, under the alias ``t``."""
        shape = selection.shape
        if shape.query is not None:
            return f"({checked_query(shape.query, shape.table)}\n) AS {ROWS}"
        return f"{self.table(shape.table)} AS {ROWS}"

    def reference(self, selection: Selection, column: SourceColumn) -> str:
        """A column of :meth:`source`."""
        return f"{ROWS}.{self.quoted(column.name)}"

    def projection(self, selection: Selection, column: SourceColumn, value: str) -> tuple[str, ...]:
        """For each lake column of a column, SQL whose result a safe cast in Arrow turns into its type.

        ``value`` is the column's :meth:`reference`.
        """
        return (value,)

    def change_columns(self, selection: Selection) -> list[tuple[LakeColumn, str]]:
        """CHANGE_COLUMNS with their SQL, of a window of tracking or CDC."""
        return []

    def conditions(self, selection: Selection) -> list[str]:
        """What stands behind WHERE, to be joined by AND."""
        conditions = []
        if selection.range is not None:
            conditions += self._range(selection, selection.range)
        if selection.window is not None:
            conditions += self.window(selection, selection.window)
        return conditions

    def window(self, selection: Selection, window: Window) -> list[str]:
        if window.change != "watermark" or window.column is None:
            raise self.no_change(selection.shape, window.change)
        column = self.column(selection.shape, window.column)
        value = self.reference(selection, column)
        upper = f"{value} <= {self.literal(column, window.upto)}"
        if window.after is None:
            return [upper]
        if window.lookback_s:
            lower = self.earlier(column, window.after, window.lookback_s)
        else:
            lower = self.literal(column, window.after)
        return [f"{value} >= {lower}", upper]

    def rows(self, selection: Selection) -> Statement:
        statement = self._rows(selection)
        return replace(statement, sql=statement.sql + self.hint)

    def _rows(self, selection: Selection, *, summed: bool = False) -> Statement:
        columns, expressions = self._projected(selection, self.summed if summed else self.projection)
        joins = []
        for number, rule in enumerate(selection.rules):
            join, broken = self._rule(selection, rule, number)
            joins.append(join)
            columns.append(LakeColumn(RULE_COLUMN.format(number), "bool"))
            expressions.append(f"CASE WHEN {broken} THEN 1 ELSE 0 END")
        named = ", ".join(
            f"{expression} AS {self.quoted(column.name)}"
            for column, expression in zip(columns, expressions, strict=True)
        )
        order = ", ".join(self.reference(selection, self.column(selection.shape, name)) for name in selection.order_by)
        sql = f"SELECT {named} {self._from(selection, joins)}" + (f" ORDER BY {order}" if order else "")
        return Statement(sql, (), tuple(columns))

    def summaries(self, selection: Selection, *, checksums: bool) -> list[Statement]:
        """Statements of one row each: rows, then nulls and total of each of ``columns``.

        Several, because a table may have more columns than a statement may have results.
        """
        if not checksums:
            return [Statement(f"SELECT {self.count}(*) {self._from(selection)}{self.hint}")]
        bare = replace(selection, rules=(), order_by=())
        lake, inner = selection.shape.lake_columns, self._rows(bare, summed=True).sql
        statements = []
        for start in range(0, len(lake), _SUMMED_AT_ONCE):
            columns = lake[start : start + _SUMMED_AT_ONCE]
            sums = []
            for column in columns:
                value = f"q.{self.quoted(column.name)}"
                sums.append(f"{self.count}(*) - {self.count}({value})")
                sums.append(self.total(column, value))
            sql = f"SELECT {self.count}(*), {', '.join(sums)} FROM ({inner}{self.fence}) AS q{self.hint}"
            statements.append(Statement(sql, (), columns))
        return statements

    def summed(self, selection: Selection, column: SourceColumn, value: str) -> tuple[str, ...]:
        """For each lake column, SQL for what :meth:`total` adds up, where that is cheaper than :meth:`projection`."""
        return self.projection(selection, column, value)

    def total(self, column: LakeColumn, value: str) -> str:
        """SQL for the sum of the integers of :meth:`summed` values, or for its text; 0 where there are none."""
        return f"COALESCE(SUM({self.checksum(column, value)}), 0)"

    @abstractmethod
    def checksum(self, column: LakeColumn, value: str) -> str:
        """SQL for the integer of a summed value, as :mod:`shared.policy.sql.checksum` says; 0 or NULL of NULL."""

    def broken_rows(self, selection: Selection, rule: RowRule) -> Statement:
        join, broken = self._rule(selection, rule, 0)
        return Statement(f"SELECT {self.count}(*) {self._from(selection, [join], [f'({broken})'])}{self.hint}")

    def trial(self, selection: Selection, rule: RowRule) -> Statement:
        """As :meth:`broken_rows`, of no row."""
        join, broken = self._rule(selection, rule, 0)
        conditions = ["1 = 0", f"({broken})"]
        return Statement(f"SELECT {self.count}(*) {self._from(selection, [join], conditions)}{self.hint}")

    # -- positions, cuts ---------------------------------------------------------------------------------------------

    def position(self, shape: TableShape, change: Change, column: str | None) -> Statement:
        """One row of one column, text or NULL: the upper bound of what is there."""
        if change != "watermark" or column is None:
            raise self.no_change(shape, change)
        found = self.column(shape, column)
        greatest = f"MAX({self.reference(Selection(shape), found)})"
        return Statement(f"SELECT {self.as_text(found, greatest)} {self._from(Selection(shape))}{self.hint}")

    def oldest(self, shape: TableShape, change: Change, capture: str | None) -> Statement | None:
        """One row of one column; None where changes of any age can be asked for."""
        if change != "watermark":
            raise self.no_change(shape, change)
        return None

    @abstractmethod
    def age(self, shape: TableShape, column: str) -> Statement:
        """One row of one column: seconds since the newest value, by the database's clock."""

    @abstractmethod
    def bounds(self, connection: DriverConnection, shape: TableShape, column: SourceColumn, rows: int) -> list[str]:
        """Distinct values in the database's order, as text, with about ``rows`` rows between them; may be empty."""

    def cut(self, connection: DriverConnection, shape: TableShape, column: str, rows: int) -> list[KeyRange]:
        """Half-open ranges between the bounds; the first has those without a value as well."""
        found = self.column(shape, column)
        bounds = self.bounds(connection, shape, found, rows)
        edges = [None, *bounds, None]
        return [
            KeyRange(found.name, lower, upper, nulls=number == 0)
            for number, (lower, upper) in enumerate(pairwise(edges))
        ]

    def every_nth(self, shape: TableShape, column: SourceColumn, rows: int, source: str) -> str:
        """SQL for the bounds by one pass over ``source`` (behind FROM), in order of the column."""
        value = self.reference(Selection(shape), column)
        return (
            f"SELECT {self.as_text(column, 'k')} FROM (SELECT DISTINCT k FROM (SELECT {value} AS k, "
            f"ROW_NUMBER() OVER (ORDER BY {value}) AS n FROM {source} WHERE {value} IS NOT NULL) AS numbered "
            f"WHERE n % {int(rows)} = 0) AS bounds ORDER BY bounds.k{self.hint}"
        )

    def no_change(self, shape: TableShape, change: Change) -> Unsupported:
        return Unsupported(
            f"{self.name} has no change: {change}; use change: watermark for {shape.table}",
            code="change_unsupported",
            subject=str(shape.table),
        )

    # -- parts of statements -----------------------------------------------------------------------------------------

    def _projected(
        self, selection: Selection, projection: Callable[[Selection, SourceColumn, str], tuple[str, ...]]
    ) -> tuple[list[LakeColumn], list[str]]:
        columns: list[LakeColumn] = []
        expressions: list[str] = []
        for column in selection.shape.columns:
            projected = projection(selection, column, self.reference(selection, column))
            assert len(projected) == len(column.lake), column
            columns += column.lake
            expressions += projected
        for lake, expression in self.change_columns(selection):
            columns.append(lake)
            expressions.append(expression)
        return columns, expressions

    def _from(self, selection: Selection, joins: Sequence[str] = (), conditions: Sequence[str] = ()) -> str:
        conditions = [*self.conditions(selection), *conditions]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return f"FROM {self.source(selection)}{''.join(joins)}{where}"

    def _range(self, selection: Selection, wanted: KeyRange) -> list[str]:
        column = self.column(selection.shape, wanted.column)
        value = self.reference(selection, column)
        bounds = []
        if wanted.lower is not None:
            bounds.append(f"{value} >= {self.literal(column, wanted.lower)}")
        if wanted.upper is not None:
            bounds.append(f"{value} < {self.literal(column, wanted.upper)}")
        if not wanted.nulls:
            return bounds or [f"{value} IS NOT NULL"]
        # Without this an index of the column would be of no use to a range that can have no NULL.
        if not bounds or not column.nullable:
            return bounds
        return [f"({' AND '.join(bounds)} OR {value} IS NULL)"]

    def _rule(self, selection: Selection, rule: RowRule, number: int) -> tuple[str, str]:
        """What is joined to the rows, and the condition that a row breaks the rule."""
        if rule.rule == "sql":
            assert rule.sql is not None
            return "", f"NOT ({checked_condition(rule.sql)}\n)"
        columns = [self.column(selection.shape, name) for name in rule.columns]
        values = [self.reference(selection, column) for column in columns]
        if rule.rule == "not_null":
            return "", " OR ".join(f"{value} IS NULL" for value in values)
        if rule.rule == "range":
            return "", " OR ".join(
                f"{value} {sign} {self.bound(column, limit)}"
                for column, value in zip(columns, values, strict=True)
                for sign, limit in (("<", rule.minimum), (">", rule.maximum))
                if limit is not None
            )
        # Joined to a set without doubles, so that no row becomes two, and under names that no table has.
        alias, names = f"_rule_{number}_of", [f"_rule_{number}_{index}" for index in range(len(columns))]
        if rule.rule == "unique":
            whole = Selection(selection.shape)
            own = [self.reference(whole, column) for column in columns]
            picked = ", ".join(f"{value} AS {name}" for value, name in zip(own, names, strict=True))
            inner = f"SELECT {picked} {self._from(whole)} GROUP BY {', '.join(own)} HAVING COUNT(*) > 1"
        else:
            assert rule.references is not None
            # With their table's alias: SQLite takes an unknown name in quotes for text.
            theirs = [f"r.{self.quoted(name)}" for name in rule.reference_columns or rule.columns]
            picked = ", ".join(f"{value} AS {name}" for value, name in zip(theirs, names, strict=True))
            inner = f"SELECT DISTINCT {picked} FROM {self.table(rule.references)} AS r"
        pairs = " AND ".join(f"{alias}.{name} = {value}" for name, value in zip(names, values, strict=True))
        join = f" LEFT JOIN ({inner}) AS {alias} ON {pairs}"
        if rule.rule == "unique":
            return join, f"{alias}.{names[0]} IS NOT NULL"
        given = " AND ".join(f"{value} IS NOT NULL" for value in values)
        return join, f"{given} AND {alias}.{names[0]} IS NULL"

    def bound(self, column: SourceColumn, value: float | str) -> str:
        """A limit of a range rule, as the job writes it."""
        return self.literal(column, value if isinstance(value, str) else _plain(value))


def modulo(value: str) -> str:
    """SQL for ``value mod P``, never negative, where ``%`` takes the sign of the dividend."""
    return f"((({value}) % {P} + {P}) % {P})"


def _plain(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**63 else repr(value)
