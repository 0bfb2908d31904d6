"""The report of :mod:`shared.policy.precheck` as tables and lines for people; the caller owns format and terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from shared.policy.quantities import show_bytes, show_duration

_ACTIONS = {
    "create": "Created: nothing is there yet",
    "replace": "Replaced: another file is there, or an earlier version",
    "compare": "Compared: same size; skipped if the content is the same, else treated as existing says",
    "rename": "Renamed in the lake, since the source renamed them",
    "delete": "Deleted in the lake, since the source has lost them",
    "skip": "Skipped: there already",
    "leave_out": "Left out: nothing that can be moved",
    "fail": "Would fail",
}
# What a finding is called, and what there is to say about it. One without a line here is called by its error code, and
# its first item says why.
_FINDINGS = {
    "access_denied": ("not readable", "the identity of the job may not read them"),
    "archived": ("in the archive tier", "they have to be rehydrated first"),
    "blocked_by_policy": ("kept back by a policy", "somebody who may has to release them"),
    "case_twin_folders": (
        "folders that differ only in case",
        "the lake keeps both; who does not tell case, Windows for one, sees one folder",
    ),
    "case_twins": (
        "paths that differ only in case", "the lake keeps both; who does not tell case, Windows for one, sees one file",
    ),
    "checked_out": ("checked out", "the version that was checked in last is moved"),
    "file_and_folder": ("names of a file and of a folder at once", "the lake takes one of the two"),
    "folder_unreadable": ("folders that cannot be listed", "what lies below them is in no number of this report"),
    "link_not_followed": ("symbolic links", "they are not followed"),
    "locked": ("locked", "whoever holds them has to let go"),
    "malware_detected": ("malware", "SharePoint does not give these files out"),
    "name_mapped": ("names that a lake cannot take", "they get the names shown below, which can be told back"),
    "not_a_file": ("neither files nor folders", "there is nothing to move"),
    "office_documents": (
        "Office documents",
        "SharePoint may give other bytes than it announces; sharepoint_rewrites decides what then",
    ),
    "other": ("other problems", "the JSON and CSV manifests name them"),
    "package_not_a_file": ("OneNote notebooks and other packages", "they are no files"),
    "path_too_long": ("paths too long or too deep for the lake", "shorten target.path, or rename in the source"),
    "shortcut_not_followed": ("shortcuts to other libraries", "they are not followed"),
    "target_exists": ("in the way of other files", "existing: fail protects what is in the lake"),
    "unmappable_path": ("names that the lake cannot take", "rename them in the source"),
    "unplaced_item": ("in a folder that the library does not tell", "a full run asks anew"),
}  # fmt: skip
_SEVERITIES = {"fails": "would fail", "left_out": "left out", "notice": "to know"}
_PATH_CHARACTERS = 200


class Table(NamedTuple):
    """A section of the report: a heading, lines of text, and a table, perhaps without rows.

    ``numbers``: the columns that hold numbers.
    """

    title: str
    lines: Sequence[str]
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    numbers: frozenset[int] = frozenset()


def tables(check: Mapping[str, Any]) -> Iterator[Table]:
    """The whole report, section by section."""
    return (table for table in _tables(check) if table.lines or table.rows)


def _tables(check: Mapping[str, Any]) -> Iterator[Table]:
    yield Table("Pre-check", [headline(check), *_remarks(check)])
    yield Table(
        "What would be done", [], ("Action", "Items", "Size"),
        [(_ACTIONS.get(row["action"], row["action"]), _count(row["items"]), show_bytes(row["bytes"]))
         for row in check["actions"]], frozenset({1, 2}),
    )  # fmt: skip
    yield _duration(check)
    yield _findings(check)
    if len(check["sources"]) > 1:
        yield _sums("By source", "Source", [
            {**row, "name": f"{row['target_path']} ({row['type']})"} for row in check["sources"]
        ])  # fmt: skip
    yield _sums("By type", "Type", _rows(check["types"], "(no type)"))
    yield _sums("By top-level folder", "Folder", _rows(check["folders"], "/"))
    yield _sums("By size", "Size of a file", [row for row in check["sizes"] if row["items"]])
    yield Table(
        "Largest files", [], ("Path", "Size"),
        [(short(row["path"]), show_bytes(row["bytes"])) for row in check["largest"]], frozenset({1}),
    )  # fmt: skip
    yield from _examples(check)


def lines(check: Mapping[str, Any]) -> list[str]:
    """A few lines for a terminal."""
    found = [f"pre-check    {headline(check)}"]
    done = ", ".join(f"{row['items']:,} {_SHORT.get(row['action'], row['action'])}" for row in check["actions"])
    if done:
        found.append(f"would be     {done}")
    for finding in check["findings"]:
        found.append(f"{_SEVERITIES[finding['severity']]:<12} {_number(finding)} x {_name(finding)}")
    found.append(f"duration     {_expected(check['estimate'])}")
    found += [
        f"             {_about_s({**band, 'at_least': True})} with {band['licences']} in the tenant"
        for band in check["estimate"]["bands"]
    ]
    return found


_SHORT = {
    "create": "created", "replace": "replaced", "compare": "compared", "rename": "renamed", "delete": "deleted",
    "skip": "skipped", "leave_out": "left out", "fail": "failed",
}  # fmt: skip


def headline(check: Mapping[str, Any]) -> str:
    """How much there is, and how much of it would move."""
    text = f"{check['items']:,} items, {show_bytes(check['bytes'])}"
    if (check["moving_items"], check["moving_bytes"]) != (check["items"], check["bytes"]):
        text += f"; of these {check['moving_items']:,} items, {show_bytes(check['moving_bytes'])} would be read"
    return text


def short(path: str) -> str:
    """A path with its middle away where it is too long for a table."""
    if len(path) <= _PATH_CHARACTERS:
        return path
    half = _PATH_CHARACTERS // 2
    return f"{path[: half - 2]} … {path[-half + 2 :]}"


def _remarks(check: Mapping[str, Any]) -> Iterator[str]:
    if not check["complete"]:
        yield "The run ended before it had seen everything: all numbers are those of what it has seen."
    if check["changes_only"]:
        yield "An incremental run of a SharePoint library: it is shown what has changed since the last one, not all."
    if any(row["type"] == "sharepoint" for row in check["sources"]):
        yield "Locks and policies (DLP) of a library show only when a file is read, so none of them is named here."
    longest, deepest = check["longest_path"], check["deepest_path"]
    if longest["characters"]:
        limits = check["limits"]
        yield (
            f"The longest path has {longest['characters']:,} characters in the lake, which takes "
            f"{limits['path_characters']:,}; the deepest has {deepest['segments']} segments, and it takes "
            f"{limits['path_segments']}."
        )


def _duration(check: Mapping[str, Any]) -> Table:
    estimate = check["estimate"]
    rows = [(_about_s(bound), bound["says"]) for bound in estimate["bounds"]]
    rows += [
        (_about_s({**band, "at_least": True}),
         f"at the {band['units_per_minute']:,} resource units a minute of a tenant with {band['licences']}, "
         "one a download")
        for band in estimate["bands"]
    ]  # fmt: skip
    expected = _expected(estimate)
    found = [f"{expected[:1].upper()}{expected[1:]}."]
    if estimate["bands"]:
        found.append(
            "How much SharePoint gives depends on the tenant's licences: where the line of yours is longer, that "
            "is the estimate. With GRAPH_UNITS_PER_MINUTE set, the setting takes the place of these lines."
        )
    return Table("Estimated duration", found, ("Duration", "Rests on") if rows else (), rows)


def _expected(estimate: Mapping[str, Any]) -> str:
    if estimate["expected_s"] is None:
        return f"not known: {estimate['rests_on']}"
    if not estimate["items"]:
        return str(estimate["rests_on"])
    return f"{_about_s({**estimate, 'seconds': estimate['expected_s']})}: {estimate['rests_on']}"


def _about_s(bound: Mapping[str, Any]) -> str:
    if bound["seconds"] < 1:
        return "seconds"
    return f"{'at least' if bound['at_least'] else 'about'} {show_duration(bound['seconds'])}"


def _findings(check: Mapping[str, Any]) -> Table:
    findings = check["findings"]
    if not findings:
        return Table("Findings", ["None: every item can be moved as it is."])
    return Table(
        "Findings", [], ("Outcome", "Items", "Size", "What"),
        [(_SEVERITIES[one["severity"]], _number(one), show_bytes(one["bytes"]), f"{_name(one)}: {_about(one)}")
         for one in findings], frozenset({1, 2}),
    )  # fmt: skip


def _examples(check: Mapping[str, Any]) -> Iterator[Table]:
    for one in check["findings"]:
        count = len(one["examples"])
        how_many = f"{count:,}" if count == one["items"] else f"{count:,} of {_number(one)}"
        columns = 2 if any(example["detail"] for example in one["examples"]) else 1
        yield Table(
            f"{_name(one)[:1].upper()}{_name(one)[1:]} ({how_many})", [], ("Path", "Detail")[:columns],
            [(short(example["path"]), short(example["detail"]))[:columns] for example in one["examples"]],
        )  # fmt: skip


def _name(finding: Mapping[str, Any]) -> str:
    return _FINDINGS.get(finding["kind"], (str(finding["kind"]), ""))[0]


def _about(finding: Mapping[str, Any]) -> str:
    known = _FINDINGS.get(finding["kind"])
    return known[1] if known else str(finding["examples"][0]["detail"])


def _number(finding: Mapping[str, Any]) -> str:
    return f"{finding['items']:,}" if finding["is_exact"] else f"more than {finding['items']:,}"


def _sums(title: str, head: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        title, [], (head, "Items", "Size", "To read", "Size"),
        [(short(row["name"]), _count(row["items"]), show_bytes(row["bytes"]), _count(row["moving_items"]),
          show_bytes(row["moving_bytes"])) for row in rows],
        frozenset({1, 2, 3, 4}),
    )  # fmt: skip


def _rows(table: Mapping[str, Any], nameless: str) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = [{**row, "name": row["name"] or nameless} for row in table["rows"]]
    return [*rows, {**table["others"], "name": "(all others)"}] if table["others"] else rows


def _count(number: int) -> str:
    return f"{number:,}"
