"""A real PostgreSQL through the whole app, others writing all the time; read back by DuckDB."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.sql.test_e2e_sql import folder, item, lake_rows, orphans, spec
from tests.support.platform import running
from tests.support.postgres import PostgresDatabase, odbc_missing

ACCOUNTS = 400
TOTAL = ACCOUNTS * 1000


@pytest.fixture
def bank(postgres: PostgresDatabase) -> PostgresDatabase:
    """Accounts between which money moves, so that a state of one moment always has the same sum."""
    postgres.run(
        'CREATE SCHEMA "Sales"',
        'CREATE TABLE "Sales".accounts (id integer PRIMARY KEY, balance numeric(12, 2) NOT NULL, '
        "at timestamptz NOT NULL DEFAULT clock_timestamp())",
        f'INSERT INTO "Sales".accounts SELECT n, 1000 FROM generate_series(1, {ACCOUNTS}) AS n',
        "ANALYZE",
    )
    return postgres


@contextmanager
def transfers(bank: PostgresDatabase, seed: int, *, also: str = "") -> Iterator[None]:
    """Money moves, an account closes now and then and another one opens, for as long as the context lasts."""
    stop, drawn = threading.Event(), random.Random(seed)

    def work() -> None:
        with bank.connect() as connection:
            while not stop.wait(0.03):
                # Always in the same order, or two of them would wait for each other.
                one, other = sorted(drawn.sample(range(1, ACCOUNTS + 1), 2))
                with connection.transaction():
                    for account, sign in ((one, "-"), (other, "+")):
                        connection.execute(
                            f'UPDATE "Sales".accounts SET balance = balance {sign} 7, at = clock_timestamp() '
                            f"WHERE id = {account}".encode()
                        )
                    if also:
                        connection.execute(also.encode())

    writers = [threading.Thread(target=work) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        yield
    finally:
        stop.set()
        for writer in writers:
            writer.join()


def accounts(bank: PostgresDatabase) -> list[tuple[Any, ...]]:
    with bank.connect(options="-c datestyle=ISO -c timezone=UTC") as connection:
        return connection.execute('SELECT id, balance, at FROM "Sales".accounts ORDER BY id').fetchall()


@pytest.mark.parametrize("driver", ["native", "odbc"])
def test_a_load_shows_one_moment_while_money_moves(tmp_path: Path, bank: PostgresDatabase, driver: str) -> None:
    if driver == "odbc" and (why := odbc_missing()):
        pytest.skip(why)
    with running(tmp_path / "platform", DB=bank.url if driver == "native" else bank.odbc) as platform:
        job = spec("bank", "DB", {"table": '"Sales".*'}, form="parquet", partition={"rows": 50, "parallel": 3})
        with transfers(bank, 1):
            runs = [platform.run(job)["id"] for _ in range(3)]
            found = lake_rows(folder(platform, job, "Sales/accounts"))
        assert len(found) == ACCOUNTS
        assert sum(row["balance"] for row in found) == TOTAL
        for run in runs:
            record = item(platform, run, "Sales.accounts")
            assert record["source_checksum"] == record["target_checksum"] is not None
            assert (record["plan"]["moments"], record["plan"]["slices"] > 3) == ("snapshot", True)
        platform.run(job)
        now = [(row["id"], row["balance"], row["at"]) for row in lake_rows(folder(platform, job, "Sales/accounts"))]
        assert now == accounts(bank)


@pytest.mark.parametrize("consistency", ["snapshot", "slice"])
def test_increments_while_money_moves_end_in_the_state_of_the_source(
    tmp_path: Path, bank: PostgresDatabase, consistency: str
) -> None:
    """A transaction may commit later than its time says; ``lookback`` is for that."""
    with running(tmp_path / "platform", DB=bank.url) as platform:
        wish = {"table": '"Sales".accounts', "mode": "incremental", "change": "watermark", "column": "at",
                "lookback": "10s"}  # fmt: skip
        job = spec("bank", "DB", wish, partition={"rows": 150, "parallel": 3}, source={"consistency": consistency})
        table = folder(platform, job, "Sales_accounts")
        with transfers(bank, 2, also=(
            'INSERT INTO "Sales".accounts VALUES (1000 + (random() * 1e9)::integer, 0) ON CONFLICT DO NOTHING'
        )):  # fmt: skip
            for _ in range(3):
                platform.run(job)
        last = platform.run(job)
        found = [(row["id"], row["balance"], row["at"]) for row in lake_rows(table)]
        assert sorted(found) == sorted(accounts(bank))
        assert sum(row[1] for row in found) == TOTAL
        assert item(platform, last["id"], "Sales.accounts")["load"] == "increment"
        assert orphans(table) == []


def test_a_key_without_order_in_the_file_and_names_of_all_kinds(tmp_path: Path, postgres: PostgresDatabase) -> None:
    odd = '"Ordnung; DROP TABLE x --"'
    postgres.run(
        f'CREATE TABLE {odd} ("schön ""ja""" uuid PRIMARY KEY DEFAULT gen_random_uuid(), "a,b" text)',
        f'INSERT INTO {odd} ("a,b") SELECT repeat(chr(128512), n) FROM generate_series(1, 200) AS n',
        "CREATE TABLE nothing ()",
    )
    with running(tmp_path / "platform", DB=postgres.url) as platform:
        job = spec("odd", "DB", {"table": "public.*"}, partition={"rows": 20})
        status = platform.run(job, "completed_with_failures")
        records = {one["table"]: one for one in platform.manifest(status["id"])["items"]}
        assert records["public.nothing"]["error_code"] == "no_columns"
        (odd,) = [one for name, one in records.items() if "Ordnung" in name]
        assert (odd["status"], odd["rows"]) == ("success", 200)
        found = lake_rows(folder(platform, job, odd["path"].rpartition("/")[2]))
        assert sorted(len(row["a_b"]) for row in found) == list(range(1, 201))
