"""PostgreSQL 12 and later, natively (ADBC) or over ODBC.

======================================== ==================== =========================================================
type                                     lake                 values
======================================== ==================== =========================================================
bool                                     bool
int2, int4, int8; oid                    int16, int32, int64; int64
float4, float8                           float, double        NaN and infinity too
numeric(p, s) up to 38 digits            decimal128(p, s)     NaN is an error
numeric without or with more digits      string               all its digits
text, varchar, char(n), name, "char"     string               char(n) with its padding
date, timestamp, timestamptz             date32, timestamp    years 1 to 9999; others, and infinity, are an error;
                                                              timestamptz as UTC
time, timetz                             string               ``10:00:00.123456+02``
interval                                 string               ISO 8601
uuid                                     string               lower case
bytea                                    binary
money                                    string               the number, without currency
json, jsonb, xml, arrays, ranges, enums, string               PostgreSQL's own text, which it takes back
bit, inet, composite and all other types
domains                                                       as the type they are made of
======================================== ==================== =========================================================

Sessions are REPEATABLE READ and READ ONLY; several see one moment by an exported snapshot. Source: PostgreSQL's manual,
"Snapshot Synchronization Functions", "System Catalogs", "Data Types".
"""

# Statements are put together here; what goes into them is quoted or checked.
# ruff: noqa: S608

import json
import math
import re
from collections.abc import Sequence
from decimal import Context, Decimal

from shared.clients.sql.classify import TORN
from shared.clients.sql.dialect import (
    COLUMN_TYPES,
    INTEGER_DIGITS,
    ROWS,
    Dialect,
    DriverConnection,
    Statement,
    modulo,
)
from shared.clients.sql.own_sql import checked_query
from shared.errors import (
    AccessDenied,
    Authentication,
    Configuration,
    ConnectionLost,
    MigrationError,
    NotFound,
    ServiceUnavailable,
    SourceMissing,
    Throttled,
    TransientError,
    Unsupported,
)
from shared.model.sql_job import Types
from shared.policy.sql.checksum import HASH_MASK, LOOKUP3, MINUS_ZERO, NAN_BITS, NOT_A_NUMBER, WHOLE, ZERO, P
from shared.policy.sql.names import TableName
from shared.policy.sql.types import decimal, decimal_of
from shared.ports.tables import Change, DatabaseFacts, LakeColumn, Selection, SourceColumn, TableShape

_AS_IT_IS = {
    "bool": "bool", "int2": "int16", "int4": "int32", "int8": "int64", "float4": "float", "float8": "double",
    "text": "string", "varchar": "string", "date": "date32", "timestamp": "timestamp[us]",
    "timestamptz": "timestamp[us, UTC]", "bytea": "binary",
}  # fmt: skip
# What every statement of ours relies on, whatever the role's own settings are.
_SETTINGS = {
    "TimeZone": "UTC", "DateStyle": "ISO, YMD", "IntervalStyle": "iso_8601", "extra_float_digits": "3",
    "bytea_output": "hex", "standard_conforming_strings": "on", "client_encoding": "UTF8", "xmlbinary": "base64",
    "idle_in_transaction_session_timeout": "0",
    # To compile the sums of a hundred columns takes longer than to add up as many thousand rows.
    "jit": "off",
}  # fmt: skip
# Between these a double holds the seconds since 1970 so exactly that their microseconds are told by rounding: up to
# 2**51 of them, divided and multiplied with half a unit in the last place lost each time.
_NEAR = ("1930-01-01", "2030-01-01")
# What PostgreSQL hashes with, values of each kind, and what these add up to where the functions are those of the
# definition; they are others where the bytes of a number stand the other way round, and may be in other products.
_FUNCTIONS = (
    "hashtextextended(text,int8)", "hash_array_extended(anyarray,int8)", "hashfloat8extended(float8,int8)",
    "timestamp_hash_extended(timestamp,int8)", "sha256(bytea)",
)  # fmt: skip
_PROBED_TEXT = f"CASE n WHEN 40 THEN repeat('ß', {WHOLE}) ELSE substr(repeat('0aé€😀', 8), 1, n) END"
_PROBES = {
    "string": _PROBED_TEXT,
    "binary": f"convert_to({_PROBED_TEXT}, 'UTF8')",
    "double": "CASE n WHEN 0 THEN 'NaN' WHEN 1 THEN '-0' WHEN 2 THEN 'infinity' ELSE (n - 20)::float8 / 7 END",
    "timestamp[us]": "timestamp '2000-01-01' + (n - 20) * interval '123456789.123457 seconds'",
}
PROBED = ("-25736063105094888563", "-25736063105094887323", "9727239322212139026", "-50339536602061377877")
_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_SAVEPOINT = "lake_begun"
_KINDS = {"r": "table", "p": "partitioned table", "v": "view", "m": "materialized view", "f": "foreign table"}
_PAGE_BYTES = 8192
# The digits that a numeric may have; the usual context rounds a difference to 28.
_EXACT = Context(prec=131_072 + 16_383)
_PAGES_A_SLICE = 60
_LEAST = {"smallint": -(2**15), "integer": -(2**31), "bigint": -(2**63)}
# Of the year 1 it leaves a time that PostgreSQL has: 4713 BC is its first year.
_LONG_S = 4_400 * 365.0 * 86_400
# Up to here one pass in order of the column is cheap, and exact.
_ORDERED_ROWS = 500_000
_FRESH = 0.05


class PostgresqlDialect(Dialect):
    name = "postgresql"
    # A text, since for a number, which the parser casts, the planner takes it for a limit and shares no sums.
    fence = " OFFSET '0'"

    def __init__(self, types: Types, *, times_checked_in_sql: bool = False, decimals_as_integers: bool = False) -> None:
        """``types`` as in the job; the rest is about the driver.

        Args:
            types: The job's wishes.
            times_checked_in_sql: It makes another time of one that it cannot hold, as psqlodbc does.
            decimals_as_integers: It hands decimals over as text, as ADBC does, and making and reading that costs more
                than all other columns; where they have few digits, integers are asked for.
        """
        super().__init__(types)
        self._times_checked_in_sql = times_checked_in_sql
        self._integer_digits = INTEGER_DIGITS if decimals_as_integers else 0
        self._server_encoding = "UTF8"
        self._is_probed = False

    # -- the catalog -------------------------------------------------------------------------------------------------

    def prepare(self, connection: DriverConnection) -> None:
        settings = ", ".join(
            f"set_config({self.text(name)}, {self.text(value)}, false)" for name, value in _SETTINGS.items()
        )
        functions = " AND ".join(
            f"COALESCE(has_function_privilege(to_regprocedure({self.text(name)})::oid, 'EXECUTE'), false)"
            for name in _FUNCTIONS
        )
        ((encoding, has_functions, *_),) = connection.rows(
            f"SELECT current_setting('server_encoding'), ({functions})::int4, {settings}"
        )
        self._server_encoding = str(encoding)
        if not self._is_probed:
            if encoding == "UTF8" and int(has_functions) and self._probed(connection) == PROBED:
                self.definition = LOOKUP3
            self._is_probed = True

    def _probed(self, connection: DriverConnection) -> tuple[str, ...]:
        values = ", ".join(f"{value} AS {self.quoted(kind)}" for kind, value in _PROBES.items())
        totals = ", ".join(f"SUM({_lookup3(kind, f'q.{self.quoted(kind)}')})::text" for kind in _PROBES)
        (found,) = connection.rows(
            f"SELECT {totals} FROM (SELECT {values} FROM generate_series(0, 40) n OFFSET 0) AS q"
        )
        return tuple(str(total) for total in found)

    def facts(self, connection: DriverConnection) -> DatabaseFacts:
        ((version, database, oid, schema, asked),) = connection.rows(
            "SELECT current_setting('server_version'), current_database()::text, "
            "(SELECT oid::int8 FROM pg_catalog.pg_database WHERE datname = current_database()), "
            "COALESCE(current_schema()::text, 'public'), has_function_privilege('pg_control_system()', 'EXECUTE')::int4"
        )
        if self._server_encoding == "SQL_ASCII":
            raise Configuration(
                "the database's encoding is SQL_ASCII, so nobody knows what its text means; copy it into a database "
                "with an encoding, such as UTF8",
                code="no_encoding",
                subject=str(database),
            )
        cluster = "unknown"
        if int(asked):
            ((cluster,),) = connection.rows("SELECT system_identifier::text FROM pg_control_system()")
        return DatabaseFacts(
            dialect=self.name,
            product=f"PostgreSQL {version}",
            database=str(database),
            identity=f"postgresql:{cluster}/{oid}",
            default_schema=str(schema),
            snapshots=True,
        )

    def tables(self, connection: DriverConnection) -> Sequence[TableName]:
        """Partitions are read as part of their table."""
        rows = connection.rows(
            "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c "
            "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition "
            "AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' "
            "AND has_schema_privilege(n.oid, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT')"
        )
        return sorted(TableName(str(schema), str(name)) for schema, name in rows)

    def describe(self, connection: DriverConnection, table: TableName, query: str | None) -> TableShape:
        if query is not None:
            return self._describe_query(connection, table, query)
        found = connection.rows(
            "SELECT c.oid::int8, c.relkind::text, has_table_privilege(c.oid, 'SELECT')::int4, "
            "c.relrowsecurity::int4, c.relhassubclass::int4 FROM pg_catalog.pg_class c "
            "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            f"WHERE n.nspname = {self.text(table.schema)} AND c.relname = {self.text(table.name)} "
            "AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
        )
        if not found:
            raise NotFound(f"there is no table or view {table}", code="table_not_found", subject=str(table))
        ((oid, kind, readable, row_security, parent),) = found
        if not int(readable):
            raise AccessDenied(
                f"the login may not read all of {table}; grant SELECT on it, and USAGE on its schema, or read the "
                "columns that it may read by a query",
                subject=str(table),
            )
        columns, facts = self._columns(connection, table, f"{int(oid)}")
        key = connection.rows(
            "SELECT a.attname::text FROM pg_catalog.pg_index i "
            "CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position) "
            "JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum "
            f"WHERE i.indrelid = {int(oid)} AND i.indisprimary AND k.position <= i.indnkeyatts ORDER BY k.position"
        )
        facts["kind"] = _KINDS[str(kind)]
        if int(row_security):
            facts["row_security"] = "only the rows that the login's policies show"
        if int(parent) and kind == "r":
            facts["inherited_by"] = "tables whose rows are read with it"
        rows, size = self._estimate(connection, Selection(TableShape(table, None, columns, (), -1, -1)))
        if kind in ("r", "p", "m"):
            ((stored,),) = connection.rows(
                f"SELECT COALESCE((SELECT SUM(pg_table_size(relid)) FROM pg_partition_tree({int(oid)})), "
                f"pg_table_size({int(oid)}))::int8"
            )
            size = int(stored)
            if not int(parent) and kind != "p" and self._is_empty(connection, int(oid)):
                # The planner takes a table that was never analysed for some pages long.
                rows = 0
        return TableShape(table, None, columns, tuple(str(name) for (name,) in key), rows, size, facts=facts)

    def _is_empty(self, connection: DriverConnection, oid: int) -> bool:
        ((size,),) = connection.rows(f"SELECT pg_relation_size({oid})::int8")
        return int(size) == 0

    def _describe_query(self, connection: DriverConnection, table: TableName, query: str) -> TableShape:
        text = checked_query(query, table)
        ((views,),) = connection.rows(
            "SELECT (has_database_privilege(current_database(), 'TEMP') AND NOT pg_is_in_recovery())::int4"
        )
        if int(views):
            # Only a view tells the digits of a numeric and the length of a char; nothing of it stays.
            connection.execute("BEGIN")
            try:
                connection.execute(f"CREATE TEMP VIEW lake_query AS {text}")
                columns, facts = self._columns(connection, table, "'pg_temp.lake_query'::regclass")
            finally:
                connection.execute("ROLLBACK")
        else:
            columns, facts = self._columns_of_nothing(connection, table, text)
        shape = TableShape(table, query, columns, (), -1, -1, facts=facts)
        rows, size = self._estimate(connection, Selection(shape))
        return TableShape(table, query, columns, (), rows, size, facts=facts)

    def _columns(
        self, connection: DriverConnection, table: TableName, relation: str
    ) -> tuple[tuple[SourceColumn, ...], dict[str, object]]:
        rows = connection.rows(
            "WITH RECURSIVE c AS (SELECT attnum, attname, attnotnull, attgenerated, attidentity, "
            "atttypid AS shown, atttypid AS typ, atttypmod AS mod FROM pg_catalog.pg_attribute "
            f"WHERE attrelid = {relation} AND attnum > 0 AND NOT attisdropped "
            "UNION ALL SELECT attnum, attname, attnotnull OR typnotnull, attgenerated, attidentity, shown, "
            "typbasetype, "
            "CASE WHEN typtypmod = -1 THEN mod ELSE typtypmod END "
            "FROM c JOIN pg_catalog.pg_type d ON d.oid = c.typ AND d.typtype = 'd') "
            "SELECT c.attname::text, c.attnotnull::int4, c.attgenerated::text, c.attidentity::text, "
            "format_type(c.typ, c.mod), CASE WHEN t.typnamespace = 'pg_catalog'::regnamespace "
            "THEN t.typname::text ELSE '' END, c.mod, "
            "CASE WHEN c.shown <> c.typ THEN format_type(c.shown, NULL) ELSE '' END "
            "FROM c JOIN pg_catalog.pg_type t ON t.oid = c.typ AND t.typtype <> 'd' ORDER BY c.attnum"
        )
        if not rows:
            raise Unsupported(f"{table} has no columns", code="no_columns", subject=str(table))
        columns, facts = [], dict[str, object]()
        for name, not_null, _, _, source_type, kind, modifier, domain in rows:
            columns.append(
                _column(
                    str(name),
                    str(source_type),
                    str(kind),
                    int(modifier),
                    nullable=not int(not_null),
                    domain=str(domain),
                )
            )
        facts[COLUMN_TYPES] = {column.name: column.type for column in columns}
        for fact, place in (("generated", 2), ("identity", 3)):
            if names := [str(row[0]) for row in rows if str(row[place] or "").strip("\x00 ")]:
                facts[fact] = names
        return tuple(columns), facts

    def _columns_of_nothing(
        self, connection: DriverConnection, table: TableName, query: str
    ) -> tuple[tuple[SourceColumn, ...], dict[str, object]]:
        """Where no view can be made: of a row that is all NULL; a numeric's digits are not known then."""
        nothing = f"FROM (SELECT 1) AS one LEFT JOIN ({query}\n) AS {ROWS} ON false"
        names = [
            str(name)
            for (name,) in connection.rows(
                f"SELECT json_object_keys(row_to_json(x)) FROM (SELECT {ROWS}.* {nothing}) x"
            )
        ]
        columns = []
        for name in names:
            ((shown, kind),) = connection.rows(
                "SELECT format_type(typ, NULL), typname::text FROM "
                f"(SELECT pg_typeof({ROWS}.{self.quoted(name)})::oid AS typ {nothing}) AS x "
                "JOIN pg_catalog.pg_type ON pg_type.oid = typ"
            )
            columns.append(_column(name, str(shown), str(kind), -1, nullable=True, domain=""))
        return tuple(columns), {COLUMN_TYPES: {column.name: column.type for column in columns}}

    def _estimate(self, connection: DriverConnection, selection: Selection) -> tuple[int, int]:
        """Rows and bytes as the planner expects them, which scales old statistics to today's size."""
        ((plan,),) = connection.rows(f"EXPLAIN (FORMAT JSON) SELECT * FROM {self.source(selection)}")
        top = (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]
        rows = int(top["Plan Rows"])
        return rows, rows * int(top["Plan Width"])

    # -- sessions ----------------------------------------------------------------------------------------------------

    def begin(
        self, connections: Sequence[DriverConnection], *, consistent: bool, for_table: TableShape | None
    ) -> tuple[int, bool]:
        snapshot = None
        for connection in connections:
            connection.execute(_BEGIN)
            if snapshot is not None:
                connection.execute(f"SET TRANSACTION SNAPSHOT {self.text(snapshot)}")
            elif consistent and len(connections) > 1:
                ((snapshot,),) = connection.rows("SELECT pg_export_snapshot()::text")
            else:
                # The first query settles which state the transaction sees.
                connection.rows("SELECT 1")
        for connection in connections:
            connection.execute(f"SAVEPOINT {_SAVEPOINT}")
        return len(connections), True

    def recover(self, connection: DriverConnection) -> None:
        connection.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")

    # -- values ------------------------------------------------------------------------------------------------------

    def literal(self, column: SourceColumn, text: str) -> str:
        """Without a type: it takes that of the column it is compared with, whatever that is."""
        return self.text(text)

    def as_text(self, column: SourceColumn, value: str) -> str:
        return f"({value})::text"

    def earlier(self, column: SourceColumn, text: str, seconds: float) -> str:
        kind = column.type
        if kind in _LEAST:
            return self.text(str(max(math.floor(Decimal(text) - Decimal(repr(seconds))), _LEAST[kind])))
        if kind.startswith("numeric"):
            return self.text(str(_EXACT.subtract(Decimal(text), Decimal(repr(seconds)))))
        if kind in ("real", "double precision"):
            return self.text(repr(float(text) - seconds))
        if seconds > _LONG_S and (kind.startswith("timestamp") or kind == "date"):
            return f"'-infinity'::{kind}"
        interval = f"interval '{seconds!r} seconds'"
        if kind.startswith("timestamp") and kind.endswith("with time zone"):
            return f"({self.text(text)}::timestamptz - {interval})"
        if kind.startswith("timestamp"):
            return f"({self.text(text)}::timestamp - {interval})"
        if kind == "date":
            return f"({self.text(text)}::date - {interval})::date"
        return super().earlier(column, text, seconds)

    # -- rows --------------------------------------------------------------------------------------------------------

    def projection(self, selection: Selection, column: SourceColumn, value: str) -> tuple[str, ...]:
        kind, lake = column.type, column.lake[0].type
        digits = decimal_of(lake)
        if digits is not None and digits[0] <= self._integer_digits:
            return (f"({value} * 1{'0' * digits[1]})::int8",)
        if self._times_checked_in_sql and (lake == "date32" or lake.startswith("timestamp")):
            # No text of that kind is a time, so the statement fails, and only at such a row.
            beyond = f"('beyond the years 1 to 9999: ' || {value}::text)::{kind}"
            return (f"CASE WHEN {value} < '0001-01-01' OR {value} >= '10000-01-01' THEN {beyond} ELSE {value} END",)
        if lake != "string":
            return (f"{value}::int8" if kind == "oid" else value,)
        if kind == "text" or kind.startswith("character varying"):
            return (value,)
        if kind == "bpchar" or kind.startswith("character"):
            # A cast to text cuts the padding off.
            return (f"textin(bpcharout({value}))",)
        if kind == "money":
            return (f"{value}::numeric::text",)
        return (f"{value}::text",)

    def summed(self, selection: Selection, column: SourceColumn, value: str) -> tuple[str, ...]:
        lake = column.lake[0].type
        plain = decimal_of(lake) or lake == "date32" or lake.startswith("timestamp")
        if self.definition == LOOKUP3 and plain:
            return (value,)
        return super().summed(selection, column, value)

    def total(self, column: LakeColumn, value: str) -> str:
        digits = decimal_of(column.type)
        if self.definition != LOOKUP3 or digits is None:
            return f"COALESCE(SUM({self.checksum(column, value)}), 0)::text"
        found = f"SUM({value})"
        # Of NaN the cast makes an error, which is also what comes of reading it.
        whole = f"COALESCE(trunc({found} * 1{'0' * digits[1]}), 0)::text"
        return f"CASE WHEN {found} = 'NaN' THEN {found}::int8::text ELSE {whole} END"

    def checksum(self, column: LakeColumn, value: str) -> str:
        if self.definition == LOOKUP3:
            return _lookup3(column.type, value)
        kind = column.type
        if kind == "bool":
            return f"{value}::int4"
        if kind in ("int16", "int32", "int64"):
            return modulo(f"{value}::int8")
        if kind == "date32":
            return modulo(f"({value} - date '1970-01-01')::int8")
        if kind.startswith("timestamp"):
            # Each part is an integer that a double holds exactly; of all years, their sum in seconds would not be one.
            whole = f"date_part('epoch', date_trunc('second', {value}))::int8 * 1000000"
            parts = f"{whole} + date_part('microseconds', {value})::int8 % 1000000"
            near = f"{value} BETWEEN '{_NEAR[0]}' AND '{_NEAR[1]}'"
            return modulo(f"CASE WHEN {near} THEN (date_part('epoch', {value}) * 1000000)::int8 ELSE {parts} END")
        if digits := decimal_of(kind):
            if digits[0] <= self._integer_digits:
                return modulo(value)
            return f"mod(mod({value} * 1{'0' * digits[1]}, {P}) + {P}, {P})::int8"
        if kind in ("float", "double"):
            bits = f"('x' || encode(float8send({value}::float8), 'hex'))::bit(64)::int8"
            return f"CASE WHEN {value} = 'NaN' THEN {NAN_BITS % P} ELSE {modulo(bits)} END"
        if kind == "string" and self._server_encoding != "UTF8":
            value = f"convert_to({value}, 'UTF8')"
        return f"(('x' || substr(md5({value}), 1, 8))::bit(32)::int8 & {HASH_MASK})"

    # -- positions, cuts ---------------------------------------------------------------------------------------------

    def position(self, shape: TableShape, change: Change, column: str | None) -> Statement:
        if change != "watermark" or column is None:
            raise self.no_change(shape, change)
        found, every = self.column(shape, column), Selection(shape)
        value = self.reference(every, found)
        # Not MAX, which some types that have an order lack, such as uuid.
        newest = f"FROM {self.source(every)} WHERE {value} IS NOT NULL ORDER BY {value} DESC LIMIT 1"
        return Statement(f"SELECT (SELECT {self.as_text(found, value)} {newest})")

    def age(self, shape: TableShape, column: str) -> Statement:
        found = self.column(shape, column)
        if found.type != "date" and not found.type.startswith("timestamp"):
            raise Unsupported(f"column {found.name} is {found.type}, which is no time", code="column_unfit")
        newest = f"MAX({self.reference(Selection(shape), found)})"
        return Statement(
            f"SELECT EXTRACT(epoch FROM now() - {newest}::timestamptz)::float8 {self._from(Selection(shape))}"
        )

    def bounds(self, connection: DriverConnection, shape: TableShape, column: SourceColumn, rows: int) -> list[str]:
        every = Selection(shape)
        if 0 <= shape.rows <= rows // 2:
            return []
        sampled = shape.facts.get("kind") in ("table", "partitioned table", "materialized view")
        if not sampled or shape.rows < _ORDERED_ROWS:
            statement = self.every_nth(shape, column, rows, self.source(every))
            return [str(text) for (text,) in connection.rows(statement)]
        slices = math.ceil(shape.rows / rows)
        return self._histogram(connection, shape, column, slices) or self._sample(connection, shape, column, slices)

    def _histogram(
        self, connection: DriverConnection, shape: TableShape, column: SourceColumn, slices: int
    ) -> list[str]:
        """From the statistics, where few rows changed since and few values are so common that they are left out."""
        found = connection.rows(
            "SELECT unnest(s.histogram_bounds::text::text[]) FROM pg_catalog.pg_stats s "
            "JOIN pg_catalog.pg_stat_all_tables a ON a.schemaname = s.schemaname AND a.relname = s.tablename "
            f"WHERE s.schemaname = {self.text(shape.table.schema)} AND s.tablename = {self.text(shape.table.name)} "
            f"AND s.attname = {self.text(column.name)} AND NOT s.inherited AND s.most_common_vals IS NULL "
            "AND COALESCE(a.last_analyze, a.last_autoanalyze) IS NOT NULL "
            f"AND a.n_mod_since_analyze <= {_FRESH} * a.n_live_tup"
        )
        edges = [str(text) for (text,) in found]
        if len(edges) <= 2 * slices or shape.facts.get("kind") != "table" or "inherited_by" in shape.facts:
            return []
        return [edges[round(number * (len(edges) - 1) / slices)] for number in range(1, slices)]

    def _sample(self, connection: DriverConnection, shape: TableShape, column: SourceColumn, slices: int) -> list[str]:
        every = Selection(shape)
        value = self.reference(every, column)
        pages = max(1, shape.size_bytes // _PAGE_BYTES)
        percent = min(100.0, 100.0 * _PAGES_A_SLICE * slices / pages)
        found = connection.rows(
            f"SELECT {self.as_text(column, 'k')} FROM (SELECT DISTINCT k FROM (SELECT {value} AS k, "
            f"ROW_NUMBER() OVER (ORDER BY {value}) AS n, COUNT(*) OVER () AS total "
            f"FROM {self.source(every)} TABLESAMPLE SYSTEM ({percent:.9f}) REPEATABLE (1) "
            f"WHERE {value} IS NOT NULL) AS sample WHERE n * {slices} / total > (n - 1) * {slices} / total "
            "AND n < total) AS bounds ORDER BY bounds.k"
        )
        return [str(text) for (text,) in found]


def _lookup3(kind: str, value: str) -> str:
    """SQL for the integer of a value that is no decimal, by the definition of that name; 0 or NULL of NULL."""
    if kind == "bool":
        return f"{value}::int4"
    if kind.startswith("int"):
        return value
    if kind == "date32":
        return f"{value} - date '1970-01-01'"
    if kind.startswith("timestamp"):
        moment = value if kind == "timestamp[us]" else f"{value} AT TIME ZONE interval '0'"
        return f"timestamp_hash_extended({moment}, 0)"
    if kind in ("float", "double"):
        # The hash takes both zeros for one.
        zero = f"CASE float8send({value}::float8) WHEN '\\x8000000000000000' THEN {MINUS_ZERO} ELSE {ZERO} END"
        odd = f"WHEN {value} = 'NaN' THEN {NOT_A_NUMBER} ELSE {zero}"
        return f"CASE WHEN {value} <> 0 AND {value} <> 'NaN' THEN hashfloat8extended({value}::float8, 0) {odd} END"
    short = f'hashtextextended({value} COLLATE "C", 0)'
    if kind == "binary":
        short = f"hash_array_extended(ARRAY[{value}], 0)"
    content = value if kind == "binary" else f"convert_to({value}, 'UTF8')"
    # Spelt out, since an array of NULL is not NULL.
    return (
        f"CASE WHEN octet_length({value}) <= {WHOLE} THEN {short} "
        f"WHEN octet_length({value}) > {WHOLE} THEN hash_array_extended(ARRAY[sha256({content})], 0) END"
    )


def _column(name: str, source_type: str, kind: str, modifier: int, *, nullable: bool, domain: str) -> SourceColumn:
    lake, note = "string", ""
    if kind in _AS_IT_IS:
        lake = _AS_IT_IS[kind]
    elif kind == "oid":
        lake = "int64"
    elif kind == "numeric":
        lake, note = _numeric(modifier)
    elif kind not in ("bpchar", "name", "char", "uuid"):
        note = "as text"
    if domain:
        note = f"domain {domain}" + (f"; {note}" if note else "")
    return SourceColumn(name, source_type, nullable, (LakeColumn(name, lake, nullable),), note)


def _numeric(modifier: int) -> tuple[str, str]:
    if modifier < 4:
        return "string", "without a number of digits, so as text"
    precision, scale = (modifier - 4) >> 16 & 0xFFFF, (modifier - 4) & 0x7FF
    # Eleven bits with a sign, since numeric(2, -3) and numeric(3, 5) are allowed.
    scale = scale - 0x800 if scale >= 0x400 else scale
    precision, scale = (precision - scale, 0) if scale < 0 else (max(precision, scale), scale)
    try:
        return decimal(precision, scale), ""
    except ValueError:
        return "string", "more than 38 digits, so as text"


# -- errors ------------------------------------------------------------------------------------------------------------

_REFUSED = ("28000", "28P01")
_AWAY = ("57P01", "57P02", "57P03", "57P05", "XX000")
_BUSY = ("40001", "40P01", "55P03", "55006", "25P03")
_MISSING = {"42P01": "table or view", "3F000": "schema", "42703": "column"}
_CONNECT = re.compile(r"FATAL:\s+(.*)")
# What the server says before there is a SQLSTATE to read: source: its message catalogue, in English.
_FATAL = (
    ("password authentication failed", "28P01"), ("no pg_hba.conf entry", "28000"), ("role ", "28000"),
    ("database ", "3D000"), ("sorry, too many clients", "53300"), ("remaining connection slots", "53300"),
    ("too many connections", "53300"), ("the database system is", "57P03"),
    ("terminating connection due to administrator command", "57P01"), ("permission denied for database", "28000"),
)  # fmt: skip


def classify_postgresql(state: str | None, said: str, *, setting: str, subject: str) -> MigrationError:
    """What an error of a server, or of libpq, means.

    Args:
        state: Its SQLSTATE, None where there is none.
        said: The library's words. They may quote values, so they are repeated only for errors of a statement.
        setting: The setting that holds the connection.
        subject: The table, or nothing.
    """
    subject = subject or setting
    if not state or state.startswith("08"):
        # A connection that is not made has no state of the server's.
        state = _state_of(said)
    words = _words(said)
    shown = f"SQLSTATE {state or 'unknown'}"
    if state in _REFUSED:
        return Authentication(
            f"the server refuses the login ({shown}); check user and password in the setting {setting}, and that "
            "pg_hba.conf lets it in from here",
            code="login_refused",
            subject=setting,
        )
    if state == "3D000":
        return SourceMissing(
            f"there is no such database ({shown}); check its name in the setting {setting}",
            code="database_missing",
            subject=setting,
        )
    if state in _BUSY or state.startswith("53"):
        return Throttled(f"the database is at a limit, or others were in the way ({shown})", subject=subject,
                         retry_after_s=5.0)  # fmt: skip
    if state == "57014" and "statement timeout" in said:
        return TransientError(
            f"a statement took longer than source.statement_timeout_s ({shown}); smaller slices (partition.rows) take "
            "less",
            code="statement_timeout",
            subject=subject,
            retry_after_s=30.0,
        )
    if state == "57014":
        return TransientError(f"the statement was ended ({shown})", code="cancelled", subject=subject)
    if state in _AWAY or state.startswith("58"):
        return ServiceUnavailable(f"the server is restarting or out of order ({shown})", subject=subject,
                                  retry_after_s=10.0)  # fmt: skip
    if state == "42501":
        return AccessDenied(
            f"the login may not read this ({words}); grant SELECT on the table and USAGE on its schema",
            subject=subject,
        )
    if state in _MISSING:
        return NotFound(f"there is no such {_MISSING[state]}: {words}", code="table_not_found", subject=subject)
    # NaN has no integer, and a cast of it is told as a feature that is missing.
    if state.startswith("22") or (state == "0A000" and "NaN" in said):
        return Unsupported(
            f"{subject} holds, or a rule or position of the job is, a value that does not go together with its type "
            f"({shown}); read the table by a query that casts the column to text",
            code="value_unfit",
            subject=subject,
        )
    if state:
        return Unsupported(
            f"PostgreSQL does not take a statement: {words} ({shown}); check query and rules of the job",
            code="statement_refused",
            subject=subject,
        )
    if ("certificate" in said or "SSL" in said) and not TORN.search(said):
        return Configuration(
            f"there is no trusted TLS connection to the server; give its authority's certificate by sslrootcert in the "
            f"setting {setting}, and see that the server's name is the certificate's",
            code="certificate_not_trusted",
            subject=setting,
        )
    return ConnectionLost(
        f"no connection to the database, or it broke; if this stays, check server and port in the setting {setting} "
        "and the network's way there",
        subject=subject,
    )


def _state_of(said: str) -> str:
    match = _CONNECT.search(said)
    if match is None:
        return ""
    # By how it begins: there are roles and databases in what is said of limits too, and in "the database system is".
    return next((state for words, state in _FATAL if match[1].startswith(words)), "")


def _words(said: str) -> str:
    """What the server says of a statement: one line."""
    match = re.search(r"ERROR:\s+([^\n]*)", said)
    return (match[1] if match else "").strip()[:300].rstrip(".; ")
