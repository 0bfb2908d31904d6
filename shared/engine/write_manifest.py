"""The manifest of a run: one header and one record for each item, as JSON, CSV, Markdown and HTML."""

import csv
import html
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from shared.engine.dry_run import DryRun
from shared.engine.run_records import RunRecords
from shared.model.records import MANIFEST_FIELDS, FileRecord, shown
from shared.policy.precheck import Precheck
from shared.policy.precheck_text import Table, tables
from shared.policy.quantities import show_bytes

# The pages for people name so many failures; JSON and CSV name all.
_SHOWN_FAILURES = 1000
_FLUSH_BYTES = 1024 * 1024
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


async def write_manifest(records: RunRecords, header: dict[str, Any], dry_run: DryRun | None = None) -> dict[str, int]:
    """Write all four formats. Idempotent: the same records give the same manifest.

    Args:
        records: The run's records.
        header: What stands above them; ``counts`` is filled in here, from the records themselves.
        dry_run: Of a dry run: what its report needs, which is filled in as ``precheck``.

    Returns:
        Items by status.
    """
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    failures: list[FileRecord] = []
    check = Precheck(dry_run.places) if dry_run is not None else None
    # Two passes: the header stands first in the file, and its counts are known only after the last record.
    async for record in records.records():
        counts[record["status"]] += 1
        sizes[record["status"]] += record["size_bytes"]
        if check is not None:
            check.add(record)
        if record["status"] == "failed":
            errors[record["error_code"] or "unknown"] += 1
            if len(failures) < _SHOWN_FAILURES:
                failures.append(shown(record))
    head = {
        **header,
        "counts": {"items": counts.total(), **{name: counts[name] for name in sorted(counts)}},
        "bytes": {"items": sizes.total(), **{name: sizes[name] for name in sorted(sizes)}},
        "errors": dict(sorted(errors.items())),
    }
    if dry_run is not None and check is not None:
        complete = header["status"] in ("completed", "completed_with_failures")
        head["precheck"] = await dry_run.report(check, records, complete=complete)
    await _write_full(records, head)
    await records.store.put(records.key("manifest.md"), _markdown(head, failures).encode("utf-8"))
    await records.store.put(records.key("manifest.html"), _html(head, failures).encode("utf-8"))
    await records.save("summary.json", head)
    return dict(counts)


async def _write_full(records: RunRecords, head: dict[str, Any]) -> None:
    opened = records.store.open_writer
    async with opened(records.key("manifest.json")) as as_json, opened(records.key("manifest.csv")) as as_csv:
        text = json.dumps(head, indent=2)[:-2]
        await as_json.write(f'{text},\n  "items": ['.encode("ascii"))
        buffer = io.StringIO()
        rows = csv.writer(buffer, lineterminator="\r\n")
        rows.writerow(MANIFEST_FIELDS)
        lines: list[str] = []
        first = True
        held = 0
        async for found in records.records():
            record = shown(found)
            line = _ENCODE({field: record.get(field) for field in MANIFEST_FIELDS})
            lines.append(("\n" if first else ",\n") + line)
            first = False
            held += len(line)
            rows.writerow([_cell(record.get(field)) for field in MANIFEST_FIELDS])
            if held >= _FLUSH_BYTES:
                await as_json.write("".join(lines).encode("ascii"))
                await as_csv.write(_utf8(buffer))
                lines, held = [], 0
        await as_json.write(("".join(lines) + "\n  ]\n}\n").encode("ascii"))
        await as_csv.write(_utf8(buffer))


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _utf8(buffer: io.StringIO) -> bytes:
    data = buffer.getvalue().encode("utf-8", "backslashreplace")
    buffer.seek(0)
    buffer.truncate()
    return data


def _cell(value: Any) -> Any:
    # A spreadsheet runs a cell that begins like a formula, and names of files come from outside.
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


def _facts(head: dict[str, Any]) -> Iterator[tuple[str, str]]:
    counts, sizes = head["counts"], head["bytes"]
    yield "Run", head["id"]
    yield "Status", head["status"]
    if "precheck" in head:
        yield "Dry run", "nothing was written; the numbers are those of a plan"
    yield "Started", head["started_at"]
    yield "Ended", head["ended_at"]
    yield "Target", head["target"]
    for status in ("uploaded", "skipped", "renamed", "deleted", "planned", "failed"):
        if counts.get(status):
            yield status.capitalize(), f"{counts[status]:,} items, {show_bytes(sizes.get(status, 0))}"
    verification = head.get("verification")
    if verification:
        yield "Verification", f"{verification['verdict']} ({verification['mode']})"
        yield "Compared with the listing", f"{verification['listed']:,}"
        yield "Read back and hashed", f"{verification['hashes_checked']:,}"
    if head.get("error"):
        yield "Error", f"{head['error']['code']}: {head['error']['detail']}"


def _one_line(text: str) -> str:
    return " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())


def _markdown(head: dict[str, Any], failures: list[FileRecord]) -> str:
    def cell(text: object) -> str:
        escaped = html.escape(_one_line(str(text)), quote=False)
        for character in "\\`*_[]|":
            escaped = escaped.replace(character, "\\" + character)
        return escaped

    lines = [f"# Migration {cell(head['name'])}", "", "| | |", "| --- | --- |"]
    lines += [f"| {cell(name)} | {cell(value)} |" for name, value in _facts(head)]
    for table in tables(head["precheck"]) if "precheck" in head else ():
        lines += ["", f"## {cell(table.title)}"]
        for text in table.lines:
            lines += ["", cell(text)]
        if table.rows:
            rules = ["---:" if column in table.numbers else "---" for column in range(len(table.head))]
            lines += ["", f"| {' | '.join(cell(name) for name in table.head)} |", f"| {' | '.join(rules)} |"]
            lines += [f"| {' | '.join(cell(text) for text in row)} |" for row in table.rows]
    if failures:
        lines += ["", f"## Failed ({head['counts']['failed']:,})", "", "| Path | Code | Why |", "| --- | --- | --- |"]
        lines += [f"| {cell(r['path'])} | {cell(r['error_code'])} | {cell(r['error_detail'])} |" for r in failures]
        if head["counts"]["failed"] > len(failures):
            lines += ["", f"The first {len(failures):,} are shown; the JSON and CSV manifests hold all."]
    return "\n".join(lines) + "\n"


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2.5rem auto;max-width:70rem;padding:0 1rem;color:#1b1b1f}
h1{font-size:1.5rem}table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;
border-bottom:1px solid #ddd;vertical-align:top;overflow-wrap:anywhere}table.facts th{width:16rem;font-weight:600}
table.report .number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
table.report th{white-space:nowrap}h2{font-size:1.15rem;margin:2rem 0 .5rem}
table.failed td+td{white-space:nowrap}table.failed td+td+td{white-space:normal;min-width:16rem}
.status{display:inline-block;padding:.1rem .6rem;border-radius:1rem;background:#e6f4ea;color:#12612b}
.status.bad{background:#fde7e7;color:#8a1212}
@media(prefers-color-scheme:dark){body{background:#17171a;color:#eee}th,td{border-color:#333}}
"""


def _html_cell(text: object) -> str:
    return html.escape(_one_line(str(text)))


def _html_table(table: Table) -> str:
    def row(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="number"' if column in table.numbers else "" for column in range(len(cells))]
        pairs = zip(kinds, cells, strict=True)
        return f"<tr>{''.join(f'<{tag}{kind}>{_html_cell(text)}</{tag}>' for kind, text in pairs)}</tr>"

    found = f"<h2>{_html_cell(table.title)}</h2>" + "".join(f"<p>{_html_cell(line)}</p>" for line in table.lines)
    if not table.rows:
        return found
    body = "".join(row("td", cells) for cells in table.rows)
    return f'{found}<table class="report"><thead>{row("th", table.head)}</thead><tbody>{body}</tbody></table>'


def _html(head: dict[str, Any], failures: list[FileRecord]) -> str:
    cell = _html_cell
    good = " bad" if head["status"] != "completed" else ""
    rows = "".join(f"<tr><th>{cell(name)}</th><td>{cell(value)}</td></tr>" for name, value in _facts(head))
    checked = "".join(_html_table(table) for table in tables(head["precheck"])) if "precheck" in head else ""
    failed = ""
    if failures:
        items = "".join(
            f"<tr><td>{cell(r['path'])}</td><td>{cell(r['error_code'])}</td><td>{cell(r['error_detail'])}</td></tr>"
            for r in failures
        )
        rest = head["counts"]["failed"] - len(failures)
        more = f"<p>{rest:,} more are in the JSON and CSV manifests.</p>" if rest else ""
        failed = (
            f"<h2>Failed ({head['counts']['failed']:,})</h2><table class='failed'><thead><tr><th>Path</th><th>Code</th>"
            f"<th>Why</th></tr></thead><tbody>{items}</tbody></table>{more}"
        )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Migration {cell(head["name"])}</title>'
        f"<style>{_STYLE}</style></head><body><h1>Migration {cell(head['name'])} "
        f'<span class="status{good}">{cell(head["status"])}</span></h1>'
        f'<table class="facts"><tbody>{rows}</tbody></table>{checked}{failed}</body></html>\n'
    )
