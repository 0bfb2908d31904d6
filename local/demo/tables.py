"""The act of the demo that migrates a shop's database into Delta tables, and then what has changed in it.

1. Every table in full: customers with their history, products as they are now, orders and their lines by watermark.
2. The shop works on: orders are written, one of them late, others change, a product and some customers are deleted.
3. The same job again: of orders and lines only what has changed since is read.

After each run the tables are read by their Delta log and compared with the database row by row. One order line has a
quantity that a rule forbids; it is set aside with the reason, and everything else arrives.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from local.demo.delta import rows_of_delta
from local.demo.platform import LAKEHOUSE, SHOP_SETTING, WORKSPACE, Platform, StepFailed
from local.demo.shop import CUSTOMERS, ORDER_LINES, ORDERS, PRODUCTS, TABLES, Changes, ShopTable, rows_of, work_on
from local.demo.stage import Run, Stage, listed

_JOB: Final = "shop"
_PATH: Final = f"Tables/{_JOB}"
_WATERMARK: Final = {"mode": "incremental", "change": "watermark", "column": "modified_at", "lookback": "1h"}

Row = tuple[Any, ...]


def migrate_tables(stage: Stage, platform: Platform, shop: Path, seed: int) -> None:
    """Play the act.

    Raises:
        StepFailed: Something is not as it must be.
    """
    stage.say("\n  A shop's database, SQLite, into Delta tables:")
    _load(stage, platform, shop)
    _follow_changes(stage, platform, shop, seed)


def _load(stage: Stage, platform: Platform, shop: Path) -> None:
    stage.begin("migrating tables")
    run = stage.follow(platform, _spec())
    records = _records(platform, run)
    rows = sum(record["rows"] for record in records.values())
    if any(record["load"] != "full" for record in records.values()):
        raise StepFailed(f"every table was to be read in full: {records}")
    stage.done(f"{len(records)} tables, {rows:,} rows", run.elapsed_s)
    _compare(stage, platform, shop, "comparing tables row by row")
    reason = _check_quarantine(platform, shop, records[ORDER_LINES.name])
    stage.say(f"    one order line is kept apart from the others: {reason}")
    stage.rows.append(("A database", f"{len(records)} tables, {rows:,} rows in Delta, the same row by row"))


def _follow_changes(stage: Stage, platform: Platform, shop: Path, seed: int) -> None:
    stage.begin("working on in the shop")
    began_s = time.monotonic()
    before = rows_of(shop, CUSTOMERS)
    changes = work_on(shop, seed)
    stage.done(
        f"in the shop: {changes.inserted} new orders, {changes.late} late one, {changes.updated} changed; "
        f"{changes.customer_changed} customers changed; {changes.customer_deleted} customers and 1 product deleted",
        time.monotonic() - began_s,
    )
    stage.begin("following the tables' changes")
    run = stage.follow(platform, _spec())
    records = _records(platform, run)
    orders = records[ORDERS.name]
    _check_increment(orders, changes)
    _compare(stage, platform, shop, "comparing tables again")
    closed = _check_history(platform, before, rows_of(shop, CUSTOMERS))
    stage.done(
        f"the tables followed: of {ORDERS.name} {orders['rows']} of {len(rows_of(shop, ORDERS)):,} rows were read",
        run.elapsed_s,
    )
    stage.say(
        f"    the late order is there; {changes.product_deleted} is gone; {closed} versions of customers are closed"
    )
    stage.rows.append((
        "The database changed",
        f"{orders['inserted']} orders inserted, {orders['updated']} updated, the late one with them; deletes followed; "
        "the same again, row by row",
    ))  # fmt: skip


def _check_increment(orders: dict[str, Any], changes: Changes) -> None:
    if orders["load"] != "increment" or orders["inserted"] != changes.inserted + changes.late:
        raise StepFailed(f"the changes of orders were to be {changes}, and the run did {orders}")
    if orders["source_rows"] >= 1000:
        raise StepFailed(f"an increment was to read only what has changed, and read {orders['source_rows']} rows")


# -- judged from outside -----------------------------------------------------------------------------------------------


def _compare(stage: Stage, platform: Platform, shop: Path, step: str) -> None:
    """Hold every table in the lake against the database, row by row.

    Raises:
        StepFailed: They differ.
    """
    stage.begin(step)
    began_s = time.monotonic()
    wrong: list[str] = []
    count = 0
    for table in TABLES:
        wanted = [row for row in rows_of(shop, table) if not _is_forbidden(table, row)]
        found = _in_lake(platform, table)
        count += len(wanted)
        wrong += differences(table.name, wanted, found)
    if wrong:
        raise StepFailed("lake and database differ:\n" + listed(wrong))
    stage.done(f"lake and database are the same: {count:,} rows of {len(TABLES)} tables", time.monotonic() - began_s)


def differences(name: str, wanted: Iterable[Row], found: Iterable[Row]) -> list[str]:
    """What is wrong with rows that should be others, in sentences; each row counts as often as it is there."""
    ours, theirs = Counter(map(_exact, wanted)), Counter(map(_exact, found))
    wrong = [f"{name}: missing in the lake: {row}" for row in (ours - theirs).elements()]
    return wrong + [f"{name}: only in the lake: {row}" for row in (theirs - ours).elements()]


def _exact(row: Row) -> str:
    # 1, 1.0 and True are equal in Python, and another type is another row.
    return repr(row)


def _is_forbidden(table: ShopTable, row: Row) -> bool:
    return table is ORDER_LINES and row[table.names.index("quantity")] < 1


def _in_lake(platform: Platform, table: ShopTable) -> list[Row]:
    folder = _folder(platform, table)
    if table is not CUSTOMERS:
        return rows_of_delta(folder, table.names)
    return [row[:-1] for row in rows_of_delta(folder, (*table.names, "_is_current")) if row[-1]]


def _check_quarantine(platform: Platform, shop: Path, record: dict[str, Any]) -> str:
    """The rows that a rule forbids lie beside the table, each with the reason; the reason of the first."""
    import pyarrow.parquet as parquet

    rows: list[Row] = []
    for path in (platform.lake_files / "_quarantine" / _JOB / ORDER_LINES.name).rglob("*.parquet"):
        kept = parquet.ParquetFile(path).read()
        rows += zip(*(kept.column(name).to_pylist() for name in (*ORDER_LINES.names, "_reason")), strict=True)
    wanted = [row for row in rows_of(shop, ORDER_LINES) if _is_forbidden(ORDER_LINES, row)]
    wrong = differences("order lines kept apart", wanted, [row[:-1] for row in rows])
    if wrong or record["quarantined"] != len(wanted) or not all(row[-1] for row in rows):
        raise StepFailed(f"the rule was to keep {wanted} apart, and the record is {record}:\n" + listed(wrong))
    return str(rows[0][-1])


def _check_history(platform: Platform, before: list[Row], after: list[Row]) -> int:
    """Closed versions of customers are those that have changed or gone; how many."""
    columns = (*CUSTOMERS.names, "_is_current", "_valid_from", "_valid_to")
    rows = rows_of_delta(_folder(platform, CUSTOMERS), columns)
    closed = [row[:-3] for row in rows if not row[-3]]
    if wrong := differences("closed versions of customers", set(before) - set(after), closed):
        raise StepFailed("the history of customers is wrong:\n" + listed(wrong))
    if any((row[-1] is None) is not row[-3] or row[-2] is None for row in rows):
        raise StepFailed("a version of a customer is without the times that it holds between")
    return len(closed)


def _folder(platform: Platform, table: ShopTable) -> Path:
    return platform.lake_tables / _JOB / table.name


def _records(platform: Platform, run: Run) -> dict[str, dict[str, Any]]:
    """The records of the run by table; each must be a success whose checksums agree."""
    manifest = platform.call("GET", run.document["links"]["manifest"])
    records = {str(record["table"]): record for record in manifest["items"]}
    wrong = [f"{name} is {record['status']}: {record['error_detail']}" for name, record in records.items()
             if record["status"] != "success"]  # fmt: skip
    wrong += [f"{table.name} is not in the manifest" for table in TABLES if table.name not in records]
    for name, record in records.items():
        source, lake = record["source_checksum"], record["target_checksum"]
        if source is None or source != lake:
            wrong.append(f"{name}: checksum {source} in the database, and {lake} in the lake")
    if wrong:
        raise StepFailed("not every table was migrated:\n" + listed(wrong))
    return records


def _spec() -> dict[str, Any]:
    return {
        "kind": "sql", "name": _JOB, "source": {"connection": SHOP_SETTING},
        "tables": [
            {"table": CUSTOMERS.name, "write": {"disposition": "history"}},
            {"table": PRODUCTS.name},
            {"table": ORDERS.name, **_WATERMARK},
            {"table": ORDER_LINES.name, **_WATERMARK},
        ],
        "quality": [
            {"table": ORDER_LINES.name, "rule": "range", "columns": ["quantity"], "min": 1, "action": "quarantine"},
            {"table": ORDERS.name, "rule": "not_null", "columns": ["id", "customer_id"]},
            {"table": ORDERS.name, "rule": "foreign_key", "columns": ["customer_id"], "references": CUSTOMERS.name,
             "reference_columns": ["id"]},
        ],
        "target": {"workspace": WORKSPACE, "lakehouse": LAKEHOUSE, "format": "delta", "path": _PATH},
    }  # fmt: skip
