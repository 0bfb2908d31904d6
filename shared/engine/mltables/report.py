"""What became of every version, for programs and for people, and whether the source may be deleted."""

import csv
import html
import io
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from shared.engine.mltables.run import AssetRecords, MltableRun
from shared.errors import MigrationError
from shared.model.mltable_steps import RECORD_FIELDS, AssetRecord, ReportOutcome
from shared.policy.quantities import show_bytes

_TOTALS = {"success": "uploaded", "skipped": "skipped", "failed": "failed", "missing": "failed", "planned": "planned"}
_ORDER = ("success", "skipped", "planned", "missing", "failed")


async def write_reports(records: AssetRecords, run: MltableRun | None, header: dict[str, Any]) -> ReportOutcome:
    """Write manifest (JSON, CSV, Markdown, HTML) and sign-off (Markdown, HTML). Idempotent but for what it asks.

    Args:
        records: Of the run.
        run: The run, to ask the target what it calls latest; None where it was never prepared.
        header: What stands above the records.

    Returns:
        Versions by the names of the status document's progress, and the sums of what was compared.
    """
    items: list[AssetRecord] = [record async for _, page in records.final_pages() for record in page]
    prepared = await records.load("prepared.json") or {}
    inventory = await records.load("inventory.json") or {"mltables": {}, "others": []}
    config = header["spec"]["config"]
    counts = Counter(item["status"] for item in items)
    labels = await _labels(records, run, items, may_ask=header["status"] != "failed")
    asked = {(item["asset_name"], item["source_version"]) for item in items}
    not_asked = [
        {"name": name, "versions": left, "archived": asset["archived"]}
        for name, asset in sorted(inventory["mltables"].items())
        if (left := [one["version"] for one in asset["versions"] if (name, one["version"]) not in asked])
    ]
    head: dict[str, Any] = {
        **header,
        "migration_batch_id": prepared.get("batch"),
        "dry_run": config["defaults"]["dry_run"],
        "source": _workspace(config["source_workspace_config"], prepared.get("source")),
        "target": _workspace(config["target_workspace_config"], prepared.get("target")),
        "counts": {"items": len(items), **{name: counts[name] for name in _ORDER if counts[name]}},
        "bytes": {"source": sum(item["source_bytes"] for item in items),
                  "copied": sum(item["bytes_copied"] for item in items)},
        "latest": labels,
        "not_requested": not_asked,
        "other_data_assets": inventory["others"],
    }  # fmt: skip
    head["verification"] = _verification(items)
    head["signoff"] = _signoff(head, items)
    rows = [{name: item.get(name) for name in RECORD_FIELDS} for item in items]
    put = records.store.put
    document = json.dumps({**head, "items": rows}, indent=2)
    await put(records.key("manifest.json"), f"{document}\n".encode("ascii"))
    await put(records.key("manifest.csv"), _csv(rows).encode("utf-8", "backslashreplace"))
    await put(records.key("manifest.md"), _markdown(head, items).encode("utf-8"))
    await put(records.key("manifest.html"), _page(f"MLTables: {header['name']}", _manifest_html(head, items)))
    await put(records.key("manifest.signoff.md"), _signoff_markdown(head).encode("utf-8"))
    await put(records.key("manifest.signoff"), _page("May the source be deleted?", _signoff_html(head)))
    totals: Counter[str] = Counter()
    for status, count in counts.items():
        totals[_TOTALS[status]] += count
    return {"totals": dict(totals), "verification": head["verification"]}


def _workspace(config: dict[str, Any], store: dict[str, Any] | None) -> dict[str, Any]:
    names = ("subscription_id", "resource_group", "workspace_name", "tenant_id")
    found = {name: config[name] for name in names}
    if store:
        found |= {"datastore": store["name"], "account": store["account"], "container": store["container"]}
    return found


async def _labels(
    records: AssetRecords, run: MltableRun | None, items: list[AssetRecord], *, may_ask: bool
) -> list[dict[str, Any]]:
    """For each asset whether ``latest`` means the same data on both sides."""
    final = {(item["asset_name"], item["source_version"]): item for item in items}
    found = []
    for _, plan in await records.groups():
        name, source = plan["name"], plan["source_latest"]
        if source is None:
            continue
        target: str | None = None
        if run is not None and may_ask and not run.dry_run:
            try:
                target = await run.target.registry.latest(name)
            except MigrationError:
                target = None
        item = final.get((name, source))
        expected = item["final_version"] if item is not None else None
        verdict = (
            "not requested" if item is None
            else "not migrated" if expected is None or item["status"] not in ("success", "skipped")
            else "unknown" if target is None
            else "same" if target == expected
            else "differs"
        )  # fmt: skip
        found.append({"asset_name": name, "source_latest": source, "expected": expected, "target_latest": target,
                      "verdict": verdict})  # fmt: skip
    return found


def _verification(items: list[AssetRecord]) -> dict[str, Any] | None:
    """The sums of what was compared, in the terms of a files migration; None where nothing was."""
    compared = [item for item in items if item["checks"]]
    if not compared:
        return None
    verdicts = {verdict for item in compared for verdict in item["checks"].values()}
    return {
        "mode": "mltable",
        "verdict": "failed" if "failed" in verdicts else "incomplete" if "warning" in verdicts else "passed",
        "listed": sum(item["dest_file_count"] for item in compared),
        "hashes_checked": sum(item["hash_sample_count"] for item in compared),
        "hash_mismatches": sum(item["hash_mismatches"] for item in compared),
        "tables_loaded": sum(item["validation_loaded"] is True for item in compared),
    }


def _signoff(head: dict[str, Any], items: list[AssetRecord]) -> dict[str, Any]:
    """The answer to whether the source may be deleted: ``no``, ``review`` or ``yes``, with every reason.

    ``no``: something that was asked for is not at the target, or not proved to be. ``review``: it is, and there is
    something that a person should look at.
    """
    no: list[str] = []
    review: list[str] = []
    if head["dry_run"]:
        no.append("this was a dry run; nothing was copied")
    if head["status"] in ("failed", "cancelled"):
        no.append(f"the run was {head['status']}")
    if not items:
        no.append("nothing was asked for")
    for item in items:
        where = f"{item['asset_name']}:{item['requested_version']}"
        if item["status"] in ("failed", "missing"):
            no.append(f"{where} {item['status']}: {item['error_detail']}")
        elif item["status"] == "planned" and not head["dry_run"]:
            no.append(f"{where} was not reached")
        elif item["status"] == "skipped" and not item["skipped_existing"]:
            no.append(f"{where} was skipped: {item['reason']}")
        elif item["status"] in ("success", "skipped"):
            bad = [name for name, verdict in item["checks"].items() if verdict in ("warning", "skipped")]
            if bad:
                review.append(f"{where}: not proved by {', '.join(bad)}")
            review += [f"{where}: {warning}" for warning in item["warnings"]]
    for label in head["latest"]:
        if label["verdict"] == "differs":
            review.append(
                f"{label['asset_name']}: 'latest' is {label['target_latest']} at the target, and the source's latest "
                f"became {label['expected']}"
            )
        elif label["verdict"] == "unknown":
            review.append(f"{label['asset_name']}: the target did not say what 'latest' is there")
    for asset in head["not_requested"]:
        review.append(f"{asset['name']}: nobody asked for the versions {', '.join(asset['versions'][:20])}")
    if head["other_data_assets"]:
        kinds = Counter(asset["type"] for asset in head["other_data_assets"])
        review.append("data assets of other types stay behind: " + ", ".join(f"{n} {k}" for k, n in kinds.items()))
    verdict = "no" if no else "review" if review else "yes"
    return {"may_delete_source": verdict, "no_because": no, "to_review": review}


# -- formats -----------------------------------------------------------------------------------------------------------


def _csv(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(RECORD_FIELDS)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in RECORD_FIELDS])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        value = " ".join(f"{name}={verdict}" for name, verdict in value.items())
    if isinstance(value, list):
        value = "; ".join(str(one) for one in value)
    # A spreadsheet runs a cell that begins like a formula, and names come from outside.
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


def _facts(head: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Run", head["id"]
    yield "Batch", str(head["migration_batch_id"])
    yield "Status", head["status"] + (" (dry run)" if head["dry_run"] else "")
    yield "Started", head["started_at"]
    yield "Ended", head["ended_at"]
    for side in ("source", "target"):
        workspace = head[side]
        yield (
            side.capitalize(),
            f"{workspace['workspace_name']} in {workspace['resource_group']}, subscription "
            + (workspace["subscription_id"]),
        )
    yield (
        "Versions",
        ", ".join(f"{count} {name}" for name, count in head["counts"].items() if name != "items") or "none",
    )
    yield "Bytes", f"{show_bytes(head['bytes']['source'])} in the source, {show_bytes(head['bytes']['copied'])} copied"
    yield "May the source be deleted?", head["signoff"]["may_delete_source"]
    if head.get("error"):
        yield "Error", f"{head['error']['code']}: {head['error']['detail']}"


def _why(item: AssetRecord) -> str:
    if item["error_code"]:
        return f"{item['error_code']}: {item['error_detail']}"
    return "; ".join([*([item["reason"]] if item["reason"] else []), *item["warnings"]])


def _row(item: AssetRecord) -> tuple[str, ...]:
    checks = ", ".join(f"{name} {verdict}" for name, verdict in item["checks"].items())
    return (
        item["asset_name"], item["requested_version"], str(item["final_version"] or ""), item["status"],
        f"{item['dest_file_count']} of {item['source_file_count']}", show_bytes(item["source_bytes"]), checks,
        _why(item),
    )  # fmt: skip


_COLUMNS = ("Asset", "Version", "Became", "Status", "Files", "Size", "Checks", "Why")


def _md(text: object) -> str:
    escaped = html.escape(" ".join(str(text).split()), quote=False)
    for character in "\\`*_[]|":
        escaped = escaped.replace(character, "\\" + character)
    return escaped


def _markdown(head: dict[str, Any], items: list[AssetRecord]) -> str:
    lines = [f"# MLTables: {_md(head['name'])}", "", "| | |", "| --- | --- |"]
    lines += [f"| {_md(name)} | {_md(value)} |" for name, value in _facts(head)]
    lines += ["", "## Versions", "", f"| {' | '.join(_COLUMNS)} |", f"|{' --- |' * len(_COLUMNS)}"]
    lines += [f"| {' | '.join(_md(cell) for cell in _row(item))} |" for item in items]
    for item in items:
        if item["blueprint_diff"]:
            lines += ["", f"## Blueprint of {_md(item['asset_name'])}:{_md(item['requested_version'])}", ""]
            lines += [f"    {line}" for line in item["blueprint_diff"].splitlines()]
    return "\n".join(lines) + "\n"


def _signoff_markdown(head: dict[str, Any]) -> str:
    answer = head["signoff"]
    lines = ["# May the source workspace be deleted?", "", f"**{_ANSWERS[answer['may_delete_source']]}**", ""]
    lines += ["| | |", "| --- | --- |", *(f"| {_md(name)} | {_md(value)} |" for name, value in _facts(head))]
    for title, key in (("Why not", "no_because"), ("To be looked at", "to_review")):
        if answer[key]:
            lines += ["", f"## {title}", "", *(f"- {_md(reason)}" for reason in answer[key])]
    lines += ["", "## What 'latest' means", "", "| Asset | Source | Target | |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {_md(one['asset_name'])} | {_md(one['source_latest'])} | {_md(one['target_latest'] or '')} | "
        f"{_md(one['verdict'])} |"
        for one in head["latest"]
    ]
    return "\n".join(lines) + "\n"


_ANSWERS = {
    "no": "No. Something that was asked for is not at the target, or not proved to be.",
    "review": "Everything that was asked for is at the target. Look at the points below first.",
    "yes": "Yes. Everything in the source was asked for, is at the target, and passed every check.",
}

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2.5rem auto;max-width:80rem;padding:0 1rem;color:#1b1b1f}
h1{font-size:1.5rem}table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;
border-bottom:1px solid #ddd;vertical-align:top;overflow-wrap:anywhere}table.facts th{width:16rem}
.answer{padding:.8rem 1rem;border-radius:.5rem;font-weight:600}.yes,.success{background:#e6f4ea;color:#12612b}
.review,.skipped,.planned{background:#fff4d6;color:#6b4e00}.no,.failed,.missing{background:#fde7e7;color:#8a1212}
td.state{border-radius:.3rem}pre{background:#f4f4f6;padding:.8rem;overflow:auto}ins{background:#d7f5dd;
text-decoration:none}del{background:#fbdada;text-decoration:none}
th,td.state{white-space:nowrap}td:first-child{min-width:9rem}
@media(prefers-color-scheme:dark){body{background:#17171a;color:#eee}th,td{border-color:#333}pre{background:#222}
ins,del{color:#111}}
"""


def _h(text: object) -> str:
    return html.escape(" ".join(str(text).encode("utf-8", "backslashreplace").decode().split()))


def _page(title: str, body: str) -> bytes:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_h(title)}</title><style>{_STYLE}</style>'
        f"<h1>{_h(title)}</h1>{body}</html>\n"
    ).encode()


def _facts_html(head: dict[str, Any]) -> str:
    rows = "".join(f"<tr><th>{_h(name)}</th><td>{_h(value)}</td></tr>" for name, value in _facts(head))
    return f'<table class="facts">{rows}</table>'


def _manifest_html(head: dict[str, Any], items: list[AssetRecord]) -> str:
    answer = head["signoff"]["may_delete_source"]
    rows = ""
    for item in items:
        cells = list(_row(item))
        rows += "<tr>" + "".join(
            f'<td class="state {_h(cell)}">{_h(cell)}</td>' if place == 3 else f"<td>{_h(cell)}</td>"
            for place, cell in enumerate(cells)
        ) + "</tr>"  # fmt: skip
    titles = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    diffs = "".join(
        f"<h2>Blueprint of {_h(item['asset_name'])}:{_h(item['requested_version'])}</h2>"
        f"<pre>{_diff_html(item['blueprint_diff'])}</pre>"
        for item in items
        if item["blueprint_diff"]
    )
    return (
        f'<p class="answer {answer}">{_h(_ANSWERS[answer])}</p>{_facts_html(head)}<h2>Versions</h2>'
        f"<table><tr>{titles}</tr>{rows}</table>{diffs}"
    )


def _diff_html(diff: str) -> str:
    shown = []
    for line in diff.splitlines():
        tag = "ins" if line.startswith("+") else "del" if line.startswith("-") else ""
        shown.append(f"<{tag}>{html.escape(line)}</{tag}>" if tag else html.escape(line))
    return "\n".join(shown)


def _signoff_html(head: dict[str, Any]) -> str:
    answer = head["signoff"]
    body = f'<p class="answer {answer["may_delete_source"]}">{_h(_ANSWERS[answer["may_delete_source"]])}</p>'
    body += _facts_html(head)
    for title, key in (("Why not", "no_because"), ("To be looked at", "to_review")):
        if answer[key]:
            body += f"<h2>{title}</h2><ul>{''.join(f'<li>{_h(reason)}</li>' for reason in answer[key])}</ul>"
    rows = "".join(
        f"<tr><td>{_h(one['asset_name'])}</td><td>{_h(one['source_latest'])}</td>"
        f"<td>{_h(one['target_latest'] or '')}</td><td>{_h(one['verdict'])}</td></tr>"
        for one in head["latest"]
    )
    return (
        f"{body}<h2>What 'latest' means</h2><table><tr><th>Asset</th><th>Source</th><th>Target</th><th></th></tr>"
        f"{rows}</table>"
    )
