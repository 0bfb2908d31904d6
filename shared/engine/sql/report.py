"""What became of every table, for programs and for people."""

import csv
import html
import io
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from shared.engine.sql.run import SqlRecords
from shared.model.sql_steps import RECORD_FIELDS, SqlReportOutcome, TableRecord
from shared.policy.quantities import show_bytes

_TOTALS = {"success": "uploaded", "failed": "failed", "planned": "planned"}
_ORDER = ("success", "planned", "failed")
_SHOWN = 1000


async def write_reports(records: SqlRecords, header: dict[str, Any]) -> SqlReportOutcome:
    """Write the manifest (JSON, CSV, Markdown, HTML). Idempotent: the same records give the same manifest.

    Returns:
        Tables by the names of the status document's progress, and what was compared.
    """
    prepared = await records.load("prepared.json") or {}
    items: list[TableRecord] = []
    async for _, page in records.final_pages():
        items += page
    spec = header["spec"]
    counts = Counter(item["status"] for item in items)
    head: dict[str, Any] = {
        **header,
        "dry_run": spec["dry_run"],
        "source": {"connection": spec["source"]["connection"], **prepared.get("database", {})},
        "target": f"{spec['target']['workspace']}/{spec['target']['lakehouse']}/{spec['target']['path']}",
        "counts": {"items": len(items), **{name: counts[name] for name in _ORDER if counts[name]}},
        "rows": {name: sum(item[name] for item in items) for name in _SUMMED},  # type: ignore[literal-required]
        "bytes": {"items": sum(item["bytes"] for item in items)},
        "errors": dict(sorted(Counter(item["error_code"] for item in items if item["error_code"]).items())),
        "warnings": prepared.get("warnings", []),
        "reloaded": {item["table"]: item["reload_reason"] for item in items if item["reload_reason"]},
    }
    if spec["dry_run"]:
        head["estimate"] = _estimate(items)
    head["verification"] = _verification(spec, items)
    rows = [{name: item.get(name) for name in RECORD_FIELDS} for item in items]
    put = records.store.put
    document = json.dumps({**head, "items": rows}, indent=2)
    await put(records.key("manifest.json"), f"{document}\n".encode("ascii"))
    await put(records.key("manifest.csv"), _csv(rows).encode("utf-8", "backslashreplace"))
    await put(records.key("manifest.md"), _markdown(head, items).encode("utf-8", "backslashreplace"))
    await put(records.key("manifest.html"), _html(head, items).encode("utf-8", "backslashreplace"))
    await records.save("summary.json", head)
    totals: Counter[str] = Counter()
    for status, count in counts.items():
        totals[_TOTALS[status]] += count
    return {"totals": dict(totals), "verification": head["verification"]}


_SUMMED = ("rows", "source_rows", "inserted", "updated", "deleted", "quarantined", "repeated")


def _estimate(items: list[TableRecord]) -> dict[str, Any]:
    """Of all tables that were planned; what the database keeps no statistics of is counted as unknown."""
    plans = [item["plan"] for item in items if item["plan"]]
    known = [plan for plan in plans if plan["rows"] >= 0]
    return {
        "tables": len(plans),
        "unknown": len(plans) - len(known),
        "rows": sum(plan["rows"] for plan in known),
        "bytes": sum(max(0, plan["lake_bytes"]) for plan in known),
        "seconds": round(sum(max(0.0, plan["seconds"]) for plan in known), 1),
    }


def _verification(spec: dict[str, Any], items: list[TableRecord]) -> dict[str, Any] | None:
    """What was compared, in the terms of a files migration; None where nothing was."""
    compared = [item for item in items if item["source_checksum"] is not None]
    if not compared:
        return None
    different = [item for item in items if item["error_code"] in ("checksum_mismatch", "row_count_mismatch")]
    return {
        "mode": ", ".join(spec["validate"]),
        "verdict": "failed" if different else "passed",
        "listed": len(compared),
        "hashes_checked": len(compared) if "checksum" in spec["validate"] else 0,
        "hash_mismatches": len(different),
    }


# -- formats -----------------------------------------------------------------------------------------------------------


def _csv(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(RECORD_FIELDS)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in RECORD_FIELDS])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False)
    # A spreadsheet runs a cell that begins like a formula, and names come from outside.
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


def _facts(head: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Run", head["id"]
    yield "Status", head["status"] + (" (dry run: nothing was written)" if head["dry_run"] else "")
    yield "Started", head["started_at"]
    yield "Ended", head["ended_at"]
    source = head["source"]
    yield "Source", f"{source.get('database', '?')} ({source.get('product', 'not reached')}) by {source['connection']}"
    yield "Target", head["target"]
    yield "Tables", ", ".join(f"{n:,} {name}" for name, n in head["counts"].items() if name != "items") or "none"
    rows = head["rows"]
    yield "Rows", ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in rows.items() if n) or "0"
    yield "Bytes", show_bytes(head["bytes"]["items"])
    if "estimate" in head:
        one = head["estimate"]
        unknown = f", and {one['unknown']:,} tables without statistics" if one["unknown"] else ""
        yield (
            "Estimated",
            (f"{one['rows']:,} rows, {show_bytes(one['bytes'])}, {one['seconds']:,.0f} s one after the other{unknown}"),
        )
    if head["verification"]:
        verification = head["verification"]
        yield "Verification", f"{verification['verdict']} ({verification['mode']}), {verification['listed']:,} tables"
    for warning in head["warnings"]:
        yield "Warning", warning
    if head.get("error"):
        yield "Error", f"{head['error']['code']}: {head['error']['detail']}"


_COLUMNS = ("Table", "Mode", "Status", "Rows", "Files", "Size", "Written to", "Why")


def _row(item: TableRecord) -> tuple[str, ...]:
    how = [item["mode"]]
    if item["change"]:
        how.append(f"by {item['change']}")
    if item["load"] == "full" and item["mode"] == "incremental":
        how.append("(from the beginning)")
    plan = item["plan"]
    planned = item["status"] == "planned" and bool(plan)
    rows = f"about {plan['rows']:,}" if planned and plan["rows"] >= 0 else f"{item['rows']:,}"
    size = show_bytes(max(0, plan["lake_bytes"])) if planned else show_bytes(item["bytes"])
    return item["table"], " ".join(how), item["status"], rows, f"{item['files']:,}", size, item["path"], _why(item)


def _why(item: TableRecord) -> str:
    found = [f"{item['error_code']}: {item['error_detail']}"] if item["error_code"] else []
    if item["reload_reason"]:
        found.append(f"read anew: {item['reload_reason']}")
    found += [item["reason"]] if item["reason"] else []
    found += _reconciled(item["reconcile"]) if item["reconcile"] and not item["error_code"] else []
    found += [change["sentence"] for change in item["schema_changes"]]
    found += item["warnings"]
    if item["status"] == "planned" and item["plan"]:
        found += item["plan"]["reasons"]
    return "; ".join(found)


def _reconciled(found: dict[str, Any]) -> list[str]:
    """What a comparison with the source has found, and what was done about it."""
    repair = found["repair"]
    if found["verdict"] == "equal":
        said = "the lake is what the source is"
    elif repair["how"] == "reload":
        said = f"the lake was not what the source is, and was read anew: {repair['why']}"
    else:
        said = f"the lake was mended: {repair['written']:,} rows written, {repair['removed']:,} removed"
    counts = [f"{found[name]:,} {name}" for name in ("pending", "quarantined", "kept") if found.get(name)]
    return [f"{said} ({', '.join(counts)})" if counts else said, *found["notes"]]


def _shown(items: list[TableRecord]) -> list[TableRecord]:
    """What failed first, so that no success hides it."""
    order = {"failed": 0, "planned": 1}
    return sorted(items, key=lambda item: order.get(item["status"], 2))[:_SHOWN]


def _md(text: object) -> str:
    escaped = html.escape(" ".join(str(text).split()), quote=False)
    for character in "\\`*_[]|":
        escaped = escaped.replace(character, "\\" + character)
    return escaped


def _markdown(head: dict[str, Any], items: list[TableRecord]) -> str:
    lines = [f"# SQL: {_md(head['name'])}", "", "| | |", "| --- | --- |"]
    lines += [f"| {_md(name)} | {_md(value)} |" for name, value in _facts(head)]
    lines += ["", "## Tables", "", f"| {' | '.join(_COLUMNS)} |", f"|{' --- |' * len(_COLUMNS)}"]
    lines += [f"| {' | '.join(_md(cell) for cell in _row(item))} |" for item in _shown(items)]
    if len(items) > _SHOWN:
        lines += ["", f"The first {_SHOWN:,} are shown; the JSON and CSV manifests hold all."]
    return "\n".join(lines) + "\n"


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2.5rem auto;max-width:80rem;padding:0 1rem;color:#1b1b1f}
h1{font-size:1.5rem}table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;
border-bottom:1px solid #ddd;vertical-align:top;overflow-wrap:anywhere}table.facts th{width:16rem}
.success{background:#e6f4ea;color:#12612b}.planned{background:#fff4d6;color:#6b4e00}
.failed{background:#fde7e7;color:#8a1212}td.state{border-radius:.3rem}
th,td.state,td.state~td:not(td.state~td~td~td~td){white-space:nowrap}tbody td:first-child{min-width:9rem}
@media(prefers-color-scheme:dark){body{background:#17171a;color:#eee}th,td{border-color:#333}}
"""


def _h(text: object) -> str:
    return html.escape(" ".join(str(text).encode("utf-8", "backslashreplace").decode().split()))


def _html(head: dict[str, Any], items: list[TableRecord]) -> str:
    facts = "".join(f"<tr><th>{_h(name)}</th><td>{_h(value)}</td></tr>" for name, value in _facts(head))
    rows = ""
    for item in _shown(items):
        rows += "<tr>" + "".join(
            f'<td class="state {_h(cell)}">{_h(cell)}</td>' if place == 2 else f"<td>{_h(cell)}</td>"
            for place, cell in enumerate(_row(item))
        ) + "</tr>"  # fmt: skip
    titles = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    more = "<p>The JSON and CSV manifests hold the rest.</p>" if len(items) > _SHOWN else ""
    title = _h(f"SQL: {head['name']}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f'</head><body><h1>{title}</h1><table class="facts"><tbody>{facts}</tbody></table><h2>Tables</h2>'
        f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>{more}</body></html>\n"
    )
