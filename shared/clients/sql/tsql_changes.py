"""What SQL Server tells of changes: rowversion, Change Tracking, Change Data Capture, as T-SQL.

Positions are text: a version of Change Tracking in digits, an LSN or a rowversion in hex. Sources: "Work with Change
Tracking", "CHANGETABLE", "cdc.fn_cdc_get_all_changes_<capture_instance>", "cdc.fn_cdc_get_net_changes_<...>",
"MIN_ACTIVE_ROWVERSION", and, about ``__$command_id``, "cdc.<capture_instance>_CT".

The version that CHANGETABLE is given is a literal: it takes no expression. One beyond an int is numeric to the parser,
which takes that too.

TRUNCATE TABLE is no change that is tracked; it sets ``begin_version`` of "sys.change_tracking_tables" anew, to a
version that may be the one that was read to. Where a table's tracking was switched off and on in between, what tracks
it is another internal table ("sys.internal_tables").

A capture instance begins when the capture process has recognized it; until then its start_lsn is NULL ("About change
data capture", "cdc.change_tables"), which ``sys.fn_cdc_get_min_lsn`` gives as zero. What lies between the last LSN that
was captured and one that is asked for was not captured yet: an upper bound beyond it would pass over it.
"""

# ruff: noqa: S608

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from shared.errors import AccessDenied, Unsupported
from shared.policy.sql.names import quote
from shared.ports.tables import (
    OPERATION_COLUMN,
    ORDER_COLUMN,
    POSITION_COLUMN,
    Capture,
    LakeColumn,
    Selection,
    TableShape,
    Window,
)

PRIMARY_KEY = "primary_key"
"""Key of ``TableShape.facts``: the catalog's primary key, whatever key the job chose."""
COMPUTED = "computed"
"""Key of ``TableShape.facts``: names of computed columns."""
MAY_TRACK = "may_track"
"""Key of ``TableShape.facts``: whether the login has VIEW CHANGE TRACKING."""
COMMANDS = "cdc_commands"
"""Key of ``TableShape.facts``: of each capture, whether the order of commands in a transaction can be read."""

# What a session is to remember, kept by the server: a position that is asked for later is that of the beginning.
_VERSION_KEY, _ROWVERSION_KEY = "N'lakehouse_migration.version'", "N'lakehouse_migration.rowversion'"
REMEMBER = (
    "DECLARE @version bigint = CHANGE_TRACKING_CURRENT_VERSION(), @rowversion binary(8) = MIN_ACTIVE_ROWVERSION(); "
    f"EXEC sys.sp_set_session_context {_VERSION_KEY}, @version; "
    f"EXEC sys.sp_set_session_context {_ROWVERSION_KEY}, @rowversion"
)
IS_LOST = f"SELECT CASE WHEN SESSION_CONTEXT({_ROWVERSION_KEY}) IS NOT NULL AND @@TRANCOUNT = 0 THEN 1 ELSE 0 END"
ROWVERSION_POSITION = (
    f"SELECT CONVERT(varchar(18), COALESCE(CAST(SESSION_CONTEXT({_ROWVERSION_KEY}) AS binary(8)), "
    "CAST(MIN_ACTIVE_ROWVERSION() AS binary(8))), 1)"
)
_LAST_VERSION = 2**63 - 1
_NEVER = str(_LAST_VERSION)
_GREATEST_LSN = "0xFFFFFFFFFFFFFFFFFFFF"
# What is told of a capture that is gone; the LSN before it is, by the server's arithmetic, the greatest.
_NO_LSN = "0x00000000000000000000"
_LSN = re.compile(r"0x[0-9A-Fa-f]{20}")
_OPERATIONS = {1: "delete", 2: "insert", 4: "update"}


# -- Change Tracking ---------------------------------------------------------------------------------------------------


def tracked_position(shape: TableShape) -> str:
    _check_tracked(shape)
    return (
        f"SELECT CONVERT(varchar(20), COALESCE(CAST(SESSION_CONTEXT({_VERSION_KEY}) AS bigint), "
        "CHANGE_TRACKING_CURRENT_VERSION()))"
    )


def tracked_oldest(table_text: str, shape: TableShape) -> str:
    """Where the server does not say, nothing is left that could be asked for."""
    _check_tracked(shape)
    return (
        f"SELECT CONVERT(varchar(20), COALESCE(CHANGE_TRACKING_MIN_VALID_VERSION(OBJECT_ID({table_text})), {_NEVER}))"
    )


def tracked_rows(table: str, shape: TableShape, window: Window, columns: Collection[str]) -> str:
    """Changes with, of rows that are still there, all their ``columns``; as one table, so that names stay plain."""
    _check_tracked(shape)
    key = _primary_key(shape)
    if {name.casefold() for name in shape.key} - {name.casefold() for name in key}:
        raise Unsupported(
            f"Change Tracking tells deleted rows of {shape.table} by the primary key ({', '.join(key)}) alone, and the "
            f"job's key is another ({', '.join(shape.key)}); leave key away",
            code="key_not_primary", subject=str(shape.table),
        )  # fmt: skip
    # Of a deleted row nothing is left but the key, and that is the change's own.
    values = ", ".join(f"{'c' if name in key else 'r'}.{_q(name)}" for name in columns)
    pairs = " AND ".join(f"r.{_q(name)} = c.{_q(name)}" for name in key)
    return (
        f"(SELECT {values}, c.[SYS_CHANGE_VERSION], c.[SYS_CHANGE_OPERATION] "
        f"FROM CHANGETABLE(CHANGES {table}, {_version(window.after, shape)}) AS c LEFT JOIN {table} AS r "
        f"ON {pairs} AND c.[SYS_CHANGE_OPERATION] <> N'D' "
        # A row that went away since is told as deleted by the next window.
        f"WHERE c.[SYS_CHANGE_OPERATION] = N'D' OR r.{_q(key[0])} IS NOT NULL) AS t"
    )


def tracked_conditions(shape: TableShape, window: Window) -> list[str]:
    return [f"t.[SYS_CHANGE_VERSION] <= {_version(window.upto, shape)}"]


def _check_tracked(shape: TableShape) -> None:
    if not shape.tracked:
        raise Unsupported(
            f"changes of {shape.table} are not tracked; run ALTER DATABASE ... SET CHANGE_TRACKING = ON "
            f"(CHANGE_RETENTION = 7 DAYS, AUTO_CLEANUP = ON) and ALTER TABLE {shape.table} ENABLE CHANGE_TRACKING",
            code="not_tracked", subject=str(shape.table),
        )  # fmt: skip
    if shape.facts.get(MAY_TRACK) is False:
        raise AccessDenied(
            f"the login may not see the tracked changes of {shape.table}; grant VIEW CHANGE TRACKING on it",
            subject=str(shape.table),
        )


def _version(position: str | None, shape: TableShape) -> str:
    if position is None or not re.fullmatch(r"\d{1,19}", position) or int(position) > _LAST_VERSION:
        raise _unfit(position, shape, "version of Change Tracking")
    return str(int(position))


def _primary_key(shape: TableShape) -> list[str]:
    key = shape.facts.get(PRIMARY_KEY)
    if not isinstance(key, list) or not key:
        raise Unsupported(f"{shape.table} has no primary key, which Change Tracking needs", code="no_key",
                          subject=str(shape.table))  # fmt: skip
    return key


# -- Change Data Capture -----------------------------------------------------------------------------------------------


def captured_position(shape: TableShape) -> str:
    """The last LSN that was captured; of a new capture that has seen nothing yet, the one it begins behind.

    Of several captures it is the oldest that can tell all columns: what a younger one begins behind may lie beyond what
    the older one has seen.
    """
    _check_captured(shape, None)
    first = f"sys.fn_cdc_get_min_lsn({_text((shape.whole_captures or shape.captures)[0].name)})"
    since = f"sys.fn_cdc_decrement_lsn(NULLIF({first}, {_NO_LSN}))"
    return (
        "SELECT CONVERT(varchar(22), CASE WHEN p.last IS NULL OR p.last < p.since THEN p.since ELSE p.last END, 1) "
        f"FROM (SELECT sys.fn_cdc_get_max_lsn() AS last, {since} AS since) AS p"
    )


def captured_oldest(shape: TableShape, capture: str | None) -> str:
    """The position before the first that is left; a capture that is gone has none left."""
    return f"SELECT {_since(_check_captured(shape, capture).name)}"


def capture_since(name: str) -> str:
    """Of a capture, the oldest position, and whether the order of commands can be read from its own table."""
    table = _text(f"[cdc].{_q(name + '_CT')}")
    return (
        f"SELECT {_since(name)}, "
        f"CASE WHEN COL_LENGTH({table}, N'__$command_id') IS NOT NULL "
        f"AND HAS_PERMS_BY_NAME({table}, N'OBJECT', N'SELECT') = 1 THEN 1 ELSE 0 END"
    )


def _since(name: str) -> str:
    first = f"sys.fn_cdc_get_min_lsn({_text(name)})"
    return f"CONVERT(varchar(22), COALESCE(sys.fn_cdc_decrement_lsn(NULLIF({first}, {_NO_LSN})), {_GREATEST_LSN}), 1)"


def captured_rows(shape: TableShape, window: Window) -> str:
    """All states of the rows, or the last one of each, under the alias ``t``.

    The functions do not tell ``__$command_id``, which orders what one transaction did; the capture's table does.
    """
    capture = _check_captured(shape, window.capture)
    _check_columns(shape, capture)
    after, upto = _lsn(window.after, shape), _lsn(window.upto, shape)
    if window.net and not capture.net:
        raise Unsupported(
            f"the capture instance {capture.name} gives no net changes; enable it with @supports_net_changes = 1, or "
            "set changes: all",
            code="no_net_changes", subject=str(shape.table),
        )  # fmt: skip
    if not window.net and _has_commands(shape, capture):
        return f"[cdc].{_q(capture.name + '_CT')} AS t"
    function = _q(f"fn_cdc_get_{'net' if window.net else 'all'}_changes_{capture.name}")
    return f"[cdc].{function}(sys.fn_cdc_increment_lsn({after}), {upto}, N'all') AS t"


def captured_conditions(shape: TableShape, window: Window) -> list[str]:
    capture = _check_captured(shape, window.capture)
    # 3 is a row as it was before an update.
    kinds = "t.[__$operation] IN (1, 2, 4)"
    if window.net or not _has_commands(shape, capture):
        return [kinds]
    after, upto = _lsn(window.after, shape), _lsn(window.upto, shape)
    return [f"t.[__$start_lsn] > {after}", f"t.[__$start_lsn] <= {upto}", kinds]


def _check_captured(shape: TableShape, capture: str | None) -> Capture:
    found = [one for one in shape.captures if capture is None or one.name == capture]
    if not found:
        raise Unsupported(
            f"{shape.table} has no capture instance {capture or ''} that the login may use; run "
            "sys.sp_cdc_enable_table, and make the login a member of its role (@role_name)",
            code="not_captured", subject=str(shape.table),
        )  # fmt: skip
    return found[-1]


def _check_columns(shape: TableShape, capture: Capture) -> None:
    captured = {name.casefold() for name in capture.columns}
    missing = [column.name for column in shape.columns if column.name.casefold() not in captured]
    if missing:
        raise Unsupported(
            f"the capture instance {capture.name} does not have the columns {', '.join(missing)[:300]} of "
            f"{shape.table}; create a second capture instance, which has them, or leave them out by exclude_columns",
            code="capture_outdated", subject=str(shape.table),
        )  # fmt: skip
    known = shape.facts.get(COMPUTED)
    computed = [column.name for column in shape.columns if isinstance(known, list) and column.name in known]
    if computed:
        raise Unsupported(
            f"CDC has no values of computed columns ({', '.join(computed)[:300]} of {shape.table}); leave them out by "
            "exclude_columns",
            code="computed_not_captured", subject=str(shape.table),
        )  # fmt: skip


def _has_commands(shape: TableShape, capture: Capture) -> bool:
    commands = shape.facts.get(COMMANDS)
    return isinstance(commands, dict) and bool(commands.get(capture.name))


def _lsn(position: str | None, shape: TableShape) -> str:
    if position is None or not _LSN.fullmatch(position):
        raise _unfit(position, shape, "LSN")
    return "0x" + position[2:].upper()


def other_code_pages(catalog: Iterable[Sequence[Any]]) -> list[str]:
    """Columns whose text is of another code page than the database's, of the catalog's rows."""
    return [str(row[0]) for row in catalog if row[13] and row[1] in ("char", "varchar", "text")]


def doubtful(columns: Iterable[str]) -> str:
    """Source: "Known limitations, issues, and errors with CDC", under "Collation differences"."""
    names = ", ".join(columns)[:300]
    if not names:
        return ""
    return (
        f"CDC may keep other characters than the table's, beyond ASCII, where a column's code page is not the "
        f"database's ({names}); make it nvarchar, or choose change: tracking"
    )


def listed(text: str) -> tuple[str, ...]:
    """The names of a list such as ``[a], [b]``."""
    return tuple(match[1].replace("]]", "]") for match in re.finditer(r"\[((?:[^\]]|\]\])*)\]", text))


# -- columns, for both -------------------------------------------------------------------------------------------------


def change_columns(selection: Selection) -> list[tuple[LakeColumn, str]]:
    window = selection.window
    if window is None or window.change not in ("tracking", "cdc"):
        return []
    if window.change == "tracking":
        operation = "CASE t.[SYS_CHANGE_OPERATION] WHEN N'I' THEN N'insert' WHEN N'D' THEN N'delete' ELSE N'update' END"
        position = "CONVERT(nvarchar(20), t.[SYS_CHANGE_VERSION])"
        order = "t.[SYS_CHANGE_VERSION]"
    else:
        words = " ".join(f"WHEN {number} THEN N'{word}'" for number, word in _OPERATIONS.items())
        operation = f"CASE t.[__$operation] {words} END"
        position = "CONVERT(nvarchar(22), t.[__$start_lsn], 1)"
        by = ["t.[__$start_lsn]"]
        if not window.net:
            capture = _check_captured(selection.shape, window.capture)
            by += ["t.[__$command_id]"] if _has_commands(selection.shape, capture) else []
            by += ["t.[__$seqval]"]
        order = f"ROW_NUMBER() OVER (ORDER BY {', '.join([*by, 't.[__$operation]'])})"
    return [
        (LakeColumn(OPERATION_COLUMN, "string", nullable=False), operation),
        (LakeColumn(POSITION_COLUMN, "string", nullable=False), position),
        (LakeColumn(ORDER_COLUMN, "int64", nullable=False), order),
    ]


def unless_deleted(selection: Selection, name: str, expression: str) -> str:
    """CDC tells a deleted row with all its values; where there is a key, that is all that is kept."""
    window, key = selection.window, selection.shape.key
    if window is None or window.change != "cdc" or not key or name in key:
        return expression
    return f"CASE WHEN t.[__$operation] <> 1 THEN {expression} END"


def is_kept(selection: Selection) -> str:
    """The condition that a change is no deletion; empty where there are none."""
    window = selection.window
    if window is None or window.change not in ("tracking", "cdc"):
        return ""
    return "t.[__$operation] <> 1" if window.change == "cdc" else "t.[SYS_CHANGE_OPERATION] <> N'D'"


def _q(name: str) -> str:
    return quote(name, "[", "]")


def _text(value: str) -> str:
    return "N'" + value.replace("'", "''") + "'"


def _unfit(position: str | None, shape: TableShape, what: str) -> Unsupported:
    return Unsupported(f"{position!r} is no {what} of {shape.table}", code="value_unfit", subject=str(shape.table))
