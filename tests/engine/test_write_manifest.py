"""The manifest: valid in every format, whatever the names are."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from shared.engine import write_manifest as writing
from shared.engine.dry_run import DryRun
from shared.engine.run_records import RunRecords
from shared.engine.write_manifest import write_manifest
from shared.model.records import MANIFEST_FIELDS
from shared.policy.precheck import Place
from tests.support.runs import memory_store, put_page, record

HOSTILE = [
    "=cmd|' /C calc'!A0", "+1", "-1+2", "@SUM(A1)", "\tx", "a,b", 'a"b', "a\nb", "a\r\nb", "<script>alert(1)</script>",
    "a|b", "[x](javascript:alert(1))", "`x`", "*b*_i_", "a\\|b", "&amp;", "</td></table>", "caf\udce9", "\U0001f600",
    "\u202egnp.exe", "'", "e\u0301",
]  # fmt: skip
HEADER = {
    "id": "files-job-1", "kind": "files", "name": "job", "status": "completed_with_failures", "round": 1,
    "started_at": "2026-11-21T02:00:00Z", "ended_at": "2026-11-21T02:10:00Z", "target": "W/L/Files/<job>|x",
    "spec": {}, "error": {"code": "throttled", "detail": "<b>|slow|</b>"},
    "verification": {"verdict": "failed", "mode": "all", "listed": 3, "hashes_checked": 2},
}  # fmt: skip


async def written(*rows: Any, **header: Any) -> dict[str, bytes]:
    records = RunRecords(memory_store(), "run")
    await put_page(records, "p00001", sorted(rows, key=lambda row: row["path"]))
    counts = await write_manifest(records, {**HEADER, **header})
    assert sum(counts.values()) == len({row["path"] for row in rows})
    formats = {}
    for name in ("json", "csv", "md", "html"):
        data = await records.store.get(records.key(f"manifest.{name}"))
        assert data is not None
        formats[name] = data
    return formats


@pytest.fixture
async def hostile() -> dict[str, bytes]:
    return await written(*(
        record(path, "failed", error_code="refused_by_lake", error_detail=f"because of {path}") for path in HOSTILE
    ))  # fmt: skip


async def test_json_holds_every_name_as_it_is(hostile: dict[str, bytes]) -> None:
    document = json.loads(hostile["json"])
    assert sorted(item["path"] for item in document["items"]) == sorted(HOSTILE)
    assert all(tuple(item) == MANIFEST_FIELDS for item in document["items"])
    assert document["counts"] == {"items": len(HOSTILE), "failed": len(HOSTILE)}
    assert document["bytes"]["items"] == 3 * len(HOSTILE)
    assert document["errors"] == {"refused_by_lake": len(HOSTILE)}
    assert document["id"] == "files-job-1"
    assert hostile["json"].isascii()


async def test_no_cell_of_the_csv_is_a_formula(hostile: dict[str, bytes]) -> None:
    rows = list(csv.reader(io.StringIO(hostile["csv"].decode("utf-8"), newline="")))
    assert tuple(rows[0]) == MANIFEST_FIELDS
    assert all(len(row) == len(MANIFEST_FIELDS) for row in rows)
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    shown = {row[0].removeprefix("'") if row[0] != "'" else row[0] for row in rows[1:]}
    assert shown == {path.encode("utf-8", "backslashreplace").decode() for path in HOSTILE}


class _Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.inside = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.inside = tag == "td"
        if self.inside:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data


async def test_html_holds_names_as_text(hostile: dict[str, bytes]) -> None:
    parsed = _Parsed(hostile["html"].decode("utf-8"))
    assert set(parsed.tags) <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "span", "table", "thead", "tbody", "tr", "th",
        "td", "p",
    }  # fmt: skip
    assert parsed.tags.count("table") == 2
    shown = {" ".join(path.encode("utf-8", "backslashreplace").decode().split()) for path in HOSTILE}
    assert shown <= set(parsed.cells)


async def test_markdown_tables_keep_their_columns(hostile: dict[str, bytes]) -> None:
    text = hostile["md"].decode("utf-8")
    failures = text[text.index("| Path | Code | Why |") :].strip().split("\n")
    assert len(failures) == 2 + len(HOSTILE)
    for line in failures:
        # An unescaped bar would begin another cell; an unescaped bracket or angle would begin a link or a tag.
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 4, line
    assert "<" not in text
    assert not re.search(r"(?<!\\)(?:\\\\)*[\[\]`*_]", text.replace("| --- | --- |", ""))


async def test_an_empty_run_is_a_valid_manifest() -> None:
    formats = await written(error=None, verification=None, status="completed")
    document = json.loads(formats["json"])
    assert document["items"] == []
    assert document["counts"] == {"items": 0}
    assert formats["csv"].decode() == ",".join(MANIFEST_FIELDS) + "\r\n"
    assert b"Failed" not in formats["md"]
    assert b"<h2>" not in formats["html"]


async def test_many_records_are_flushed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_FLUSH_BYTES", 500)
    formats = await written(*(record(f"f{number:03d}") for number in range(100)))
    document = json.loads(formats["json"])
    assert [item["path"] for item in document["items"]] == [f"f{number:03d}" for number in range(100)]
    assert len(formats["csv"].decode().splitlines()) == 101


async def test_pages_for_people_name_the_first_failures_and_say_how_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writing, "_SHOWN_FAILURES", 3)
    formats = await written(*(record(f"f{number}", "failed", error_code="throttled") for number in range(5)))
    assert "Failed (5)" in formats["md"].decode()
    assert "The first 3 are shown" in formats["md"].decode()
    assert "2 more are in the JSON" in formats["html"].decode()
    assert len(json.loads(formats["json"])["items"]) == 5


async def test_the_same_records_give_the_same_manifest() -> None:
    rows = [record("a"), record("b", "skipped"), record("c", "failed", error_code="throttled")]
    assert await written(*rows) == await written(*rows)


DRY = DryRun(places=(Place("", "sharepoint"),))


async def dry_run(*rows: Any, dry: DryRun = DRY, **header: Any) -> dict[str, bytes]:
    records = RunRecords(memory_store(), "run")
    await put_page(records, "p00001", sorted(rows, key=lambda row: row["path"]))
    await write_manifest(records, {**HEADER, **header}, dry)
    formats = {}
    for name in ("manifest.json", "manifest.md", "manifest.html", "summary.json"):
        data = await records.store.get(records.key(name))
        assert data is not None
        formats[name.rpartition(".")[2] if name != "summary.json" else "summary"] = data
    return formats


async def test_a_dry_run_has_its_report_in_the_header() -> None:
    formats = await dry_run(
        record("a.docx", "planned", action="create", source={"source_path": "a.docx"}),
        record("A.docx", "planned", action="replace"),
        record("n", "skipped", error_code="package_not_a_file", error_detail="is a notebook"),
        status="completed",
    )
    check = json.loads(formats["json"])["precheck"]
    assert check == json.loads(formats["summary"])["precheck"]
    assert check["complete"] is True
    assert {one["kind"] for one in check["findings"]} == {
        "case_twins", "name_mapped", "office_documents", "package_not_a_file",
    }  # fmt: skip
    assert [band["units_per_minute"] for band in check["estimate"]["bands"]] == [1250, 2500, 3750, 5000, 6250]
    for form in ("md", "html"):
        shown = formats[form].decode()
        for title in ("Pre-check", "What would be done", "Estimated duration", "Findings", "By type", "By size"):
            assert title in shown
    assert "items" not in json.loads(formats["summary"])


async def test_a_run_that_is_none_has_no_report() -> None:
    formats = await written(record("a"))
    assert "precheck" not in json.loads(formats["json"])
    assert b"Pre-check" not in formats["md"] + formats["html"]


async def test_a_report_of_hostile_names_is_text_in_every_format() -> None:
    formats = await dry_run(*(
        record(f"{path}/{path}", "failed", error_code="refused_by_lake", error_detail=f"of {path}") for path in HOSTILE
    ), *(record(path, "planned", action="create", source={"source_path": path}) for path in HOSTILE))  # fmt: skip
    parsed = _Parsed(formats["html"].decode("utf-8"))
    assert not {"script", "a", "b", "i", "img", "code"} & set(parsed.tags)
    text = formats["md"].decode("utf-8")
    assert "<" not in text
    assert not re.search(r"(?<!\\)(?:\\\\)*[\[\]`*_]", re.sub(r"\| -[-: |]*\|", "", text))
    columns = 0
    for line in text.split("\n"):
        bars = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))
        assert not bars or not columns or bars == columns, line
        columns = bars


async def test_a_dry_run_that_was_cut_short_says_so() -> None:
    formats = await dry_run(record("a", "planned", action="create"), status="cancelled")
    assert json.loads(formats["json"])["precheck"]["complete"] is False
    assert "ended before it had seen everything" in formats["html"].decode()


async def test_the_path_is_the_sources_own_and_the_target_the_lakes() -> None:
    records = RunRecords(memory_store(), "run-1")
    await put_page(records, "p00001", [
        record("docs/dot%2E", "failed", error_code="locked", source={"source_path": "dot."}),
        record("docs/plain", source={"drive_item_id": "01"}),
        record("docs/sur%ED%A0%BDrogate%0A", source={"source_path": "sur\ud83drogate\n"}),
    ])  # fmt: skip
    await write_manifest(records, HEADER)
    manifest = json.loads(await records.store.get(records.key("manifest.json")) or b"")
    assert [(one["path"], one["target"]) for one in manifest["items"]] == [
        ("docs/dot.", "Files/job/docs/dot%2E"), ("docs/plain", "Files/job/docs/plain"),
        ("docs/sur\ud83drogate\n", "Files/job/docs/sur%ED%A0%BDrogate%0A"),
    ]  # fmt: skip
    for form in ("csv", "md", "html"):
        text = (await records.store.get(records.key(f"manifest.{form}")) or b"").decode()
        assert "docs/dot." in text
    assert "docs/dot%2E" not in (await records.store.get(records.key("manifest.html")) or b"").decode()
