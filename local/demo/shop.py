"""The shop whose database the demo migrates: SQLite, seeded, and what happens in it between two runs.

Declared types are those that people declare; SQLite keeps what it is given. Names, texts and bytes are such as have
broken exports before: quotes, commas, line breaks, other scripts, an empty text beside NULL.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

_CUSTOMERS: Final = 300
_PRODUCTS: Final = 120
_ORDERS: Final = 1500
_MOST_LINES: Final = 6
_OPENED: Final = datetime(2026, 1, 5, 8, 0)  # noqa: DTZ001 - a shop's wall clock
_NAMES: Final = (
    "Adatum", 'Contoso "Süd"', "Fabrikam, Inc.", "O'Brien & Söhne", "株式会社リットウェア", "Proseware\nBranch 2",
    "Tailspin 🧸", "Wingtip; Toys", "",
)  # fmt: skip
_COUNTRIES: Final = ("AT", "DE", "JP", "NO", "US", None)
_STATES: Final = ("new", "paid", "sent")
_WARES: Final = ("Lamp", "Chair", "Desk", "Shelf", "Rug", "Vase")

Value = Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class ShopColumn:
    """A column as it is declared, and what a value of it means: SQLite has no booleans, and 12 where 12.0 is meant."""

    name: str
    declared: str
    means: Value = _same


@dataclass(frozen=True, slots=True)
class ShopTable:
    """A table of the shop."""

    name: str
    columns: tuple[ShopColumn, ...]
    key: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


CUSTOMERS: Final = ShopTable(
    "customers",
    (
        ShopColumn("id", "INTEGER NOT NULL"), ShopColumn("name", "VARCHAR(80) NOT NULL"),
        ShopColumn("country", "CHAR(2)"), ShopColumn("is_regular", "BOOLEAN NOT NULL", bool),
        ShopColumn("credit_limit", "DECIMAL(12, 2)", float), ShopColumn("born", "DATE"),
        ShopColumn("joined_at", "TIMESTAMP NOT NULL"), ShopColumn("notes", "TEXT"),
    ),
    ("id",),
)  # fmt: skip
PRODUCTS: Final = ShopTable(
    "products",
    (
        ShopColumn("sku", "VARCHAR(20) NOT NULL"), ShopColumn("name", "VARCHAR(80) NOT NULL"),
        ShopColumn("price", "DECIMAL(10, 2) NOT NULL", float), ShopColumn("weight_kg", "DOUBLE"),
        ShopColumn("ean", "BIGINT"), ShopColumn("in_stock", "SMALLINT NOT NULL"),
        ShopColumn("launched", "DATE"), ShopColumn("picture", "BLOB"),
    ),
    ("sku",),
)  # fmt: skip
ORDERS: Final = ShopTable(
    "orders",
    (
        ShopColumn("id", "INTEGER NOT NULL"), ShopColumn("customer_id", "INTEGER NOT NULL"),
        ShopColumn("state", "VARCHAR(10) NOT NULL"), ShopColumn("total", "DECIMAL(12, 2) NOT NULL", float),
        ShopColumn("ordered_at", "TIMESTAMP NOT NULL"),
        ShopColumn("modified_at", "TIMESTAMP NOT NULL"),
    ),
    ("id",),
)  # fmt: skip
ORDER_LINES: Final = ShopTable(
    "order_lines",
    (
        ShopColumn("order_id", "INTEGER NOT NULL"), ShopColumn("line", "SMALLINT NOT NULL"),
        ShopColumn("sku", "VARCHAR(20) NOT NULL"), ShopColumn("quantity", "INTEGER NOT NULL"),
        ShopColumn("price", "DECIMAL(10, 2) NOT NULL", float),
        ShopColumn("modified_at", "TIMESTAMP NOT NULL"),
    ),
    ("order_id", "line"),
)  # fmt: skip
TABLES: Final = (CUSTOMERS, PRODUCTS, ORDERS, ORDER_LINES)


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened in the shop between two runs, in numbers of rows."""

    inserted: int
    updated: int
    late: int
    deleted: int
    customer_changed: int
    customer_deleted: int
    product_deleted: str


def open_shop(path: Path, seed: int) -> None:
    """Make the database, with the rows of its first months."""
    draw = random.Random(f"{seed}/shop")  # noqa: S311 - sample data, not a secret
    with closing(sqlite3.connect(path)) as shop, shop:
        for table in TABLES:
            columns = ", ".join(f"{column.name} {column.declared}" for column in table.columns)
            shop.execute(f"CREATE TABLE {table.name} ({columns}, PRIMARY KEY ({', '.join(table.key)}))")
        _insert(shop, CUSTOMERS, (_customer(draw, number) for number in range(1, _CUSTOMERS + 1)))
        products = [_product(draw, number) for number in range(1, _PRODUCTS + 1)]
        _insert(shop, PRODUCTS, products)
        for number in range(1, _ORDERS + 1):
            _order(shop, draw, number, _OPENED + timedelta(minutes=37 * number), products)
        # What the rule about quantities is for.
        shop.execute("UPDATE order_lines SET quantity = -2 WHERE order_id = 7 AND line = 1")


def work_on(path: Path, seed: int) -> Changes:
    """Another day in the shop: orders come in and are sent, one is written late, and things are deleted."""
    draw = random.Random(f"{seed}/shop/later")  # noqa: S311 - sample data, not a secret
    with closing(sqlite3.connect(path)) as shop, shop:
        products = shop.execute("SELECT * FROM products").fetchall()
        last = _OPENED + timedelta(minutes=37 * _ORDERS)
        for number in range(_ORDERS + 1, _ORDERS + 41):
            _order(shop, draw, number, last + timedelta(minutes=number - _ORDERS), products)
        # Its transaction was open while others were written, so it appears behind the newest time that was read.
        _order(shop, draw, _ORDERS + 41, last - timedelta(minutes=10), products)
        sent = [(_shown(last + timedelta(hours=1)), number) for number in draw.sample(range(1, _ORDERS), 60)]
        shop.executemany("UPDATE orders SET state = 'returned', modified_at = ? WHERE id = ?", sent)
        changed = shop.execute("UPDATE customers SET country = 'SE', credit_limit = 1234.5 WHERE id <= 12").rowcount
        gone = shop.execute("DELETE FROM customers WHERE id > ?", (_CUSTOMERS - 3,)).rowcount
        (sku,) = shop.execute("SELECT max(sku) FROM products").fetchone()
        deleted = shop.execute("DELETE FROM products WHERE sku = ?", (sku,)).rowcount
    return Changes(40, len(sent), 1, deleted, changed, gone, sku)


def rows_of(path: Path, table: ShopTable) -> list[tuple[Any, ...]]:
    """What a table holds, by what its values mean, in the order of its key."""
    with closing(sqlite3.connect(path)) as shop:
        found = shop.execute(
            f"SELECT {', '.join(table.names)} FROM {table.name} ORDER BY {', '.join(table.key)}"  # noqa: S608 - own names
        ).fetchall()
    return [
        tuple(None if value is None else column.means(value) for column, value in zip(table.columns, row, strict=True))
        for row in found
    ]


def _insert(
    shop: sqlite3.Connection, table: ShopTable, rows: Iterator[tuple[Any, ...]] | list[tuple[Any, ...]]
) -> None:
    shop.executemany(
        f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(table.columns))})",  # noqa: S608 - own names
        rows,
    )


def _customer(draw: random.Random, number: int) -> tuple[Any, ...]:
    born = date(1940, 1, 1) + timedelta(days=draw.randrange(24_000)) if draw.random() < 0.9 else None
    return (
        number, f"{draw.choice(_NAMES)} {number}".strip(), draw.choice(_COUNTRIES), draw.random() < 0.3,
        draw.randrange(10_000_000) / 100 if draw.random() < 0.8 else None, born and born.isoformat(),
        _shown(_OPENED - timedelta(seconds=draw.randrange(10**8), microseconds=draw.randrange(10**6))),
        draw.choice((None, "", 'says "no\tthanks"', "zweizeilig\r\nund mehr")),
    )  # fmt: skip


def _product(draw: random.Random, number: int) -> tuple[Any, ...]:
    return (
        f"SKU-{number:04d}", f"{draw.choice(_WARES)} {draw.choice(_NAMES[1:])}", draw.randrange(100, 90_000) / 100,
        draw.uniform(0.01, 80) if draw.random() < 0.9 else None,
        draw.randrange(10**12, 10**13) if draw.random() < 0.9 else None, draw.randrange(0, 500),
        (date(2019, 1, 1) + timedelta(days=draw.randrange(2500))).isoformat(),
        draw.choice((None, b"", draw.randbytes(draw.randrange(1, 3000)))),
    )  # fmt: skip


def _order(
    shop: sqlite3.Connection, draw: random.Random, number: int, at: datetime, products: list[tuple[Any, ...]]
) -> None:
    wares = draw.sample(products, draw.randint(1, _MOST_LINES))
    lines = [
        (number, line, ware[0], draw.randint(1, 9), ware[2], _shown(at)) for line, ware in enumerate(wares, start=1)
    ]
    total = round(sum(line[3] * line[4] for line in lines), 2)
    customer = draw.randint(1, _CUSTOMERS - 3)
    _insert(shop, ORDERS, [(number, customer, draw.choice(_STATES), total, _shown(at), _shown(at))])
    _insert(shop, ORDER_LINES, lines)


def _shown(at: datetime) -> str:
    return at.isoformat(sep=" ")
