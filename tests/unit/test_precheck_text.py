"""The report for people: every section there is, and none that would be empty."""

from __future__ import annotations

from typing import Any

from shared.policy.durations import Load, Measured, estimate
from shared.policy.precheck_text import lines, short, tables
from tests.unit.test_precheck import LIBRARY, Place, checked, planned, refused

_LIMITS = {"path_characters": 1024, "path_segments": 57}


def document(*rows: Any, places: Any = LIBRARY, units: int | None = None, **changes: Any) -> dict[str, Any]:
    check = checked(rows, places)
    found = estimate(Load(*check.load()), sharepoint=Load(*check.load("sharepoint")), units_per_minute=units,
                     bandwidth=None, measured=changes.pop("measured", None))  # fmt: skip
    return {"complete": True, "changes_only": False, "limits": _LIMITS, **check.report(), "estimate": found, **changes}


def text(check: dict[str, Any]) -> str:
    return "\n".join(
        "\n".join([table.title, *table.lines, " | ".join(table.head), *(" | ".join(row) for row in table.rows)])
        for table in tables(check)
    )


def test_every_table_has_as_many_cells_as_heads() -> None:
    rows = (planned("a/x.docx"), planned("A/x.docx"), refused("n", "package_not_a_file", "is a notebook", "skipped"))
    for check in (document(), document(*rows), document(*rows, places=[Place("", "folder")], units=1250)):
        for table in tables(check):
            assert all(len(row) == len(table.head) for row in table.rows), table.title
            assert table.lines or table.rows, table.title
            assert all(number < len(table.head) for number in table.numbers)


def test_a_library_without_a_setting_shows_the_bands() -> None:
    shown = text(document(*(planned(f"f{number:02d}.pdf", 2**20) for number in range(25))))
    assert "25 items, 25.0 MiB\n" in shown
    assert "at the 1,250 resource units a minute of a tenant with up to 1,000 licences" in shown
    assert "Not known: no run of this job" in shown
    assert "None: every item can be moved as it is." in shown
    assert "Locks and policies" in shown
    assert "By source" not in shown


def test_an_earlier_run_makes_it_an_estimate() -> None:
    shown = text(document(planned("a", 2**30), measured=Measured("files-a-1", True, Load(1000, 2**30), 90.0)))
    assert "About 1 min 30 s: this job's run files-a-1 moved 1,000 items" in shown


def test_what_limits_the_report_is_said() -> None:
    shown = text(document(complete=False, changes_only=True))
    assert "ended before it had seen everything" in shown
    assert "what has changed since the last one" in shown


def test_a_finding_without_a_sentence_of_its_own_has_that_of_its_first_item() -> None:
    assert "would fail | 1 | 3 B | brand_new: is odd" in text(document(refused("a", "brand_new", "is odd")))


def test_several_sources_are_told_apart() -> None:
    shown = text(document(planned("l/a", 1), planned("s/b", 2), places=[Place("l", "sharepoint"), Place("s", "blob")]))
    assert "l (sharepoint) | 1 | 1 B | 1 | 1 B" in shown


def test_a_terminal_gets_a_few_lines() -> None:
    shown = lines(document(
        planned("a.docx"), planned("b", 9, "replace"), refused("m", "malware_detected"), units=1250,
    ))  # fmt: skip
    assert shown == [
        "pre-check    3 items, 15 B; of these 2 items, 12 B would be read",
        "would be     1 created, 1 replaced, 1 failed",
        "would fail   1 x malware",
        "to know      1 x Office documents",
        "duration     seconds: 2 downloads from SharePoint, one resource unit each, at the 1,250 a minute of "
        "GRAPH_UNITS_PER_MINUTE",
    ]  # fmt: skip


def test_a_long_path_loses_its_middle() -> None:
    assert short("a" * 200) == "a" * 200
    assert len(short(f"{'a' * 500}.pdf")) <= 200
    assert short(f"{'a' * 500}.pdf").endswith("aaa.pdf")
