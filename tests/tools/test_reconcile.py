"""``python -m tools.migrate reconcile``: an operator asks whether the lake is what the database is, and mends it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.platform import Platform, running
from tests.tools.conftest import run_migrate


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, total INTEGER)")
        connection.executemany("INSERT INTO orders VALUES (?, ?)", [(n, n * 10) for n in range(100)])
    connection.close()
    return path


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, shop: Path) -> Iterator[Platform]:
    with running(tmp_path_factory.mktemp("platform"), SHOP_DB=f"sqlite:///{shop}") as started:
        yield started


def test_compare_tells_by_its_exit_status_and_repair_mends(platform: Platform, shop: Path, tmp_path: Path) -> None:
    workspace = platform.spec("any")["target"]
    spec = {
        "kind": "sql", "name": "shop", "source": {"connection": "SHOP_DB"}, "tables": [{"table": "orders"}],
        "target": {**workspace, "path": "Tables/shop", "format": "delta"},
    }  # fmt: skip
    file = tmp_path / "shop.json"
    file.write_text(json.dumps(spec))

    def migrate(*arguments: str) -> Any:
        return run_migrate(platform.host.url, arguments[0], str(file), "--watch", *arguments[1:])

    assert migrate("start").returncode == 0
    assert migrate("reconcile").returncode == 0
    with sqlite3.connect(shop) as connection:
        connection.execute("UPDATE orders SET total = 7 WHERE id = 3")
    connection.close()
    found = migrate("reconcile")
    assert found.returncode == 1
    assert "completed_with_failures" in found.stderr
    mended = migrate("reconcile", "--repair")
    assert mended.returncode == 0, mended.stderr
    manifest = json.loads(run_migrate(platform.host.url, "manifest", mended.stdout.splitlines()[0]).stdout)
    assert manifest["items"][0]["reconcile"]["different"] == 1
    assert migrate("reconcile").returncode == 0


def test_only_jobs_of_tables_can_be_reconciled(platform: Platform, tmp_path: Path) -> None:
    file = tmp_path / "files.json"
    file.write_text(json.dumps(platform.spec("files")))
    answer = run_migrate(platform.host.url, "reconcile", str(file))
    assert answer.returncode == 2
    assert "kind: sql" in answer.stderr
