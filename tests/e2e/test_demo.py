"""The demo as a newcomer runs it, and its judgement: damage of any kind must not pass."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from local.demo.comparison import Digest, check_manifest, compare_folders, compare_with
from local.demo.delta import rows_of_delta
from local.demo.invoices import SPECIAL_NAMES, invoice_pdf, make_sources, plan_names, write_invoice
from local.demo.shop import CUSTOMERS, ORDER_LINES, ORDERS, PRODUCTS, TABLES, open_shop, rows_of, work_on
from local.demo.tables import differences
from tests.support.platform import PATIENCE_S, REPOSITORY, until


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "local.demo", *arguments],
        cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=4 * PATIENCE_S,
    )  # fmt: skip


@contextmanager
def running_demo(output: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Without Node, where it is the system's: the act about MLTables takes longest, and only one test is about it."""
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "local.demo", *arguments], env={**os.environ, "PATH": "/nonexistent"},
            cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            # Not SIGKILL: it has children, and they must not outlive a test that failed.
            process.terminate()
            process.wait(PATIENCE_S)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def children(work: Path) -> list[int]:
    """Process ids of emulators and host, as they announce them themselves."""
    emulators = json.loads((work / "emulators" / "emulators.json").read_text())["pid"]
    return [emulators, int((work / "host" / "host.lock").read_text())]


# -- as a program ------------------------------------------------------------------------------------------------------


def test_all_is_well_through_kills(tmp_path: Path) -> None:
    work = tmp_path / "work"
    done = run_demo("--files", "60", "--kill", "--work", str(work))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SIGKILL to the host") >= 1
    assert "60 files uploaded" in done.stdout
    assert "the same in 60 of 60 files; none missing, none extra" in done.stdout
    assert "60 files recognised, 0 bytes uploaded" in done.stdout
    assert "it alone moved" in done.stdout
    assert "named and not moved: 'Notebook 1', " in done.stdout
    assert "60 files renamed, 2 uploaded, 1 deleted, with 2 downloads" in done.stdout
    assert done.stdout.count("lake and library are the same: 247 files") == 2
    assert done.stdout.count("lake and database are the same: ") == 2
    assert "41 orders inserted, 60 updated" in done.stdout
    assert "3 assets copied and registered" in done.stdout or "Left out: MLTables" in done.stdout
    assert "All is well" in done.stdout
    assert "\x1b" not in done.stdout, "control characters belong on terminals"
    assert not work.exists()


def test_kept_it_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    work, output = tmp_path / "work", tmp_path / "output"
    with running_demo(output, "--files", "1", "--keep", "--work", str(work)) as demo:

        def is_serving() -> bool:
            assert demo.poll() is None, output.read_text()
            return "Logs" in output.read_text()

        until(is_serving, "the addresses")
        shown = output.read_text()
        assert f"the {len(SPECIAL_NAMES)} with special names are made" in shown
        address = re.search(r"All runs +(http\S+)", shown)
        assert address is not None
        with urllib.request.urlopen(address[1]) as answer:
            runs = json.load(answer)["value"]
        assert sum(run["kind"] == "files" for run in runs) == 5
        pids = children(work)
        assert all(is_running(pid) for pid in pids)
        second = run_demo("--work", str(work))
        assert (second.returncode, "another demo uses" in second.stderr) == (2, True)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(PATIENCE_S) == 0
    assert not any(is_running(pid) for pid in pids)
    assert (work / "sources" / "special" / "empty.pdf").read_bytes() == b""


def test_an_interrupted_demo_leaves_no_process(tmp_path: Path) -> None:
    work, output = tmp_path / "work", tmp_path / "output"
    with running_demo(output, "--files", "400", "--kill", "--work", str(work)) as demo:
        until(lambda: "SIGKILL to the host" in output.read_text(), "the first kill")
        until(lambda: "up again" in output.read_text(), "the host to be back")
        pids = children(work)
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(PATIENCE_S) == 130
    assert "Interrupted at: migrating" in output.read_text()
    assert not any(is_running(pid) for pid in pids)


def test_a_failed_step_is_named_with_the_logs(tmp_path: Path) -> None:
    work, output = tmp_path / "work", tmp_path / "output"
    with running_demo(output, "--files", "1", "--keep", "--work", str(work)) as demo:
        until(lambda: "Logs" in output.read_text(), "the addresses")
        emulators, host = children(work)
        os.kill(host, signal.SIGKILL)
        assert demo.wait(PATIENCE_S) == 1
    shown = output.read_text()
    assert "The demo FAILED at: serving" in shown
    assert str(work / "host" / "host.log") in shown
    assert (work / "host" / "host.log").exists()
    assert not is_running(emulators)


def test_a_flipped_bit_in_the_lake_fails_the_demo(tmp_path: Path) -> None:
    work, output = tmp_path / "work", tmp_path / "output"
    lake = work / "emulators" / "onelake" / "Migration" / "Landing.Lakehouse" / "Files" / "demo"

    def one_that_has_arrived() -> Path | None:
        for path in lake.rglob("*.pdf"):
            size_bytes = path.stat().st_size
            if size_bytes and size_bytes == (work / "sources" / path.relative_to(lake)).stat().st_size:
                return path
        return None

    with running_demo(output, "--files", "150", "--kill", "--work", str(work)) as demo:
        flip_a_bit(until(one_that_has_arrived, "a file in the lake"))
        assert demo.wait(PATIENCE_S) == 1, output.read_text()
    # Either the app's own sample meets it, or the comparison of every byte does.
    assert re.search("FAILED at: (migrating|comparing every byte)", output.read_text())


@pytest.mark.parametrize("arguments", [("--files", "0"), ("--files", "many"), ("--seed", "x"), ("--fast",), ("extra",)])
def test_bad_arguments(arguments: tuple[str, ...]) -> None:
    assert run_demo(*arguments).returncode == 2


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = run_demo("--work", str(tmp_path))
    assert (done.returncode, "are not a demo's" in done.stderr) == (2, True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


# -- its files ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_sources(tmp_path / folder, 30, seed, lambda done, total: None)
    assert compare_folders(tmp_path / "a", tmp_path / "b").is_identical
    assert not compare_folders(tmp_path / "a", tmp_path / "c").is_identical


def test_the_names_that_have_broken_migrations_are_there() -> None:
    names = plan_names(1, 1)
    everything = "".join(names)
    assert all(character in everything for character in "#%+&' 🧾é\u0301")
    assert any(len(name.rpartition("/")[2]) == 200 for name in names)
    assert any(name.count("/") == 8 for name in names)
    folded = [name.casefold() for name in names]
    assert len(set(folded)) == len(folded) - 1
    assert len(set(plan_names(5000, 7))) == 5000


def test_a_pdf_is_one(tmp_path: Path) -> None:
    content = invoice_pdf("2024/01/a.pdf", 1)
    table_at = int(content.rpartition(b"startxref\n")[2].split()[0])
    assert content[table_at : table_at + 4] == b"xref"
    for number, entry in enumerate(content[table_at:].split(b"\n")[3:9], 1):
        at = int(entry[:10])
        assert content[at:].startswith(b"%d 0 obj" % number)
    assert content.endswith(b"%%EOF\n")


def test_pdf_tools_agree(tmp_path: Path) -> None:
    for tool in ("qpdf", "pdftotext"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: apt install qpdf poppler-utils")
    write_invoice(tmp_path, "a.pdf", 1, revision=2)
    subprocess.run(["qpdf", "--check", "a.pdf"], cwd=tmp_path, check=True, capture_output=True)
    text = subprocess.run(["pdftotext", "a.pdf", "-"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "INVOICE" in text
    assert "Amended, revision 2" in text
    assert "Total due: EUR" in text


def test_the_same_seed_gives_the_same_shop(tmp_path: Path) -> None:
    shops = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        open_shop(tmp_path / name, seed)
        work_on(tmp_path / name, seed)
        shops[name] = [rows_of(tmp_path / name, table) for table in TABLES]
    assert shops["a"] == shops["b"]
    assert shops["a"] != shops["c"]


def test_what_happens_in_the_shop_is_what_is_told(tmp_path: Path) -> None:
    shop = tmp_path / "shop.db"
    open_shop(shop, 1)
    before = {table.name: rows_of(shop, table) for table in TABLES}
    changes = work_on(shop, 1)
    after = {table.name: rows_of(shop, table) for table in TABLES}
    new = {row[0]: row for row in after[ORDERS.name] if row[0] not in {old[0] for old in before[ORDERS.name]}}
    newest = max(row[-1] for row in before[ORDERS.name])
    assert len(new) == changes.inserted + changes.late
    assert sum(row[-1] < newest for row in new.values()) == changes.late == 1
    assert len(set(after[ORDERS.name]) - set(before[ORDERS.name])) == len(new) + changes.updated
    assert len(before[CUSTOMERS.name]) - len(after[CUSTOMERS.name]) == changes.customer_deleted
    assert changes.product_deleted not in {row[0] for row in after[PRODUCTS.name]}
    assert sum(row[ORDER_LINES.names.index("quantity")] < 1 for row in after[ORDER_LINES.name]) == 1


# -- its judgement -----------------------------------------------------------------------------------------------------


@pytest.fixture
def moved(tmp_path: Path) -> tuple[Path, Path]:
    """A source, and a lake that holds the same."""
    source, lake = tmp_path / "source", tmp_path / "lake"
    make_sources(source, 20, 1, lambda done, total: None)
    shutil.copytree(source, lake)
    return source, lake


def flip_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        bit = file.read(1)[0] ^ 1
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([bit]))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_equal_folders_are_identical(moved: tuple[Path, Path]) -> None:
    found = compare_folders(*moved)
    assert found.is_identical
    assert found.files == len(found.source) == 20
    assert found.size_bytes == sum(path.stat().st_size for path in moved[0].rglob("*.pdf"))


@pytest.mark.parametrize(
    ("damage", "field"),
    [(flip_a_bit, "different"), (truncate, "different"), (Path.unlink, "missing")],
)
def test_damage_is_found(moved: tuple[Path, Path], damage: Callable[[Path], None], field: str) -> None:
    source, lake = moved
    damage(lake / "special" / "Case.pdf")
    found = compare_folders(source, lake)
    assert not found.is_identical
    assert getattr(found, field) == ["special/Case.pdf"]


def test_what_is_too_much_is_found(moved: tuple[Path, Path]) -> None:
    source, lake = moved
    (lake / "special" / ".olm-staging-left-behind").write_bytes(b"")
    assert compare_folders(source, lake).extra == ["special/.olm-staging-left-behind"]


def test_accents_composed_otherwise_are_another_name(moved: tuple[Path, Path]) -> None:
    source, lake = moved
    composed, decomposed = (name for name in SPECIAL_NAMES if "Caf" in name)
    (lake / decomposed).unlink()
    found = compare_folders(source, lake)
    assert (found.missing, found.extra) == ([decomposed], [])
    assert composed not in found.missing


def test_a_lake_that_is_not_there(moved: tuple[Path, Path], tmp_path: Path) -> None:
    assert len(compare_folders(moved[0], tmp_path / "nothing").missing) == 20


def test_digests_that_somebody_else_computed(moved: tuple[Path, Path]) -> None:
    source, lake = moved
    digests = compare_folders(source, source).source
    assert compare_with(digests, lake).is_identical
    other = {**digests, "special/Case.pdf": Digest(1, "", ""), "new.pdf": Digest(2, "", "")}
    (lake / "more.pdf").write_bytes(b"")
    found = compare_with(other, lake)
    assert (found.missing, found.extra, found.different) == (["new.pdf"], ["more.pdf"], ["special/Case.pdf"])
    assert found.files == 21


def manifest_of(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    digests = compare_folders(source, source).source
    items = [
        {"path": name, "target": f"Files/demo/{name}", "status": "uploaded", "size_bytes": digest.size_bytes,
         "hash": digest.md5, "hash_kind": "md5", "error_code": None}
        for name, digest in digests.items()
    ]  # fmt: skip
    return {"counts": {"items": len(items)}, "items": items}, dict(digests)


def test_a_manifest_that_is_right(moved: tuple[Path, Path]) -> None:
    manifest, digests = manifest_of(moved[0])
    assert check_manifest(manifest, digests, "Files/demo") == []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda items: items.append(items[0]), "stands there 2 times"),
        (lambda items: items.pop(), "is not in the manifest"),
        (lambda items: items.append({**items[0], "path": "other"}), "not in the source"),
        (lambda items: items[0].update(status="failed", error_code="gone"), "is failed (gone)"),
        (lambda items: items[0].update(hash="0" * 32), "has the md5"),
        (lambda items: items[0].update(hash=None, hash_kind=None), "has the None None"),
        (lambda items: items[0].update(size_bytes=items[0]["size_bytes"] + 1), "and really"),
        (lambda items: items[0].update(target="Files/elsewhere"), "is said to lie at"),
    ],
)
def test_a_manifest_that_is_wrong(
    moved: tuple[Path, Path], damage: Callable[[list[dict[str, Any]]], object], told: str
) -> None:
    manifest, digests = manifest_of(moved[0])
    wrong = copy.deepcopy(manifest)
    damage(wrong["items"])
    assert any(told in line for line in check_manifest(wrong, digests, "Files/demo"))


def test_a_manifest_that_counts_wrongly(moved: tuple[Path, Path]) -> None:
    manifest, digests = manifest_of(moved[0])
    manifest["counts"]["items"] += 1
    assert len(check_manifest(manifest, digests, "Files/demo")) == 1


ROWS = [(1, "a", 1.5, None), (1, "a", 1.5, None), (2, "", 0.0, b"x")]


def test_equal_rows_in_another_order() -> None:
    assert differences("orders", ROWS, ROWS[::-1]) == []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (ROWS[1:], ["orders: missing in the lake: (1, 'a', 1.5, None)"]),
        ([*ROWS, (3, "", 0.0, None)], ["orders: only in the lake: (3, '', 0.0, None)"]),
        ([*ROWS[:2], (2, None, 0.0, b"x")], ["missing in the lake: (2, '', ", "only in the lake: (2, None, "]),
        ([*ROWS[:2], (2, "", -0.0, b"x")], ["missing", "only in the lake: (2, '', -0.0"]),
        ([*ROWS[:2], (2, "", 0, b"x")], ["missing", "only in the lake: (2, '', 0, "]),
    ],
)
def test_other_rows_are_found(found: list[tuple[Any, ...]], told: list[str]) -> None:
    wrong = differences("orders", ROWS, found)
    assert len(wrong) == len(told)
    assert all(part in line for part, line in zip(told, wrong, strict=True))


@pytest.fixture
def delta_table(tmp_path: Path) -> Path:
    """A table with a commit that takes files away, written by the library that others use."""
    import pyarrow as pa
    from deltalake import write_deltalake

    path = tmp_path / "numbers"
    for mode, numbers in (("append", [1, 2]), ("overwrite", [3]), ("append", [4, 5])):
        write_deltalake(path, pa.table({"number": numbers, "word": [str(one) for one in numbers]}), mode=mode)
    return path


def test_a_delta_table_is_read_by_its_log(delta_table: Path) -> None:
    assert sorted(rows_of_delta(delta_table, ["word", "number"])) == [("3", 3), ("4", 4), ("5", 5)]


def test_a_delta_table_without_its_beginning_is_refused(delta_table: Path) -> None:
    (delta_table / "_delta_log" / "00000000000000000001.json").unlink()
    with pytest.raises(ValueError, match="does not begin with its first commit"):
        rows_of_delta(delta_table, ["number"])


def test_a_delta_table_that_lost_a_file_is_no_table(delta_table: Path) -> None:
    for path in delta_table.glob("*.parquet"):
        path.unlink()
    with pytest.raises(FileNotFoundError):
        rows_of_delta(delta_table, ["number"])


def test_what_is_no_delta_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="_delta_log"):
        rows_of_delta(tmp_path, ["number"])
