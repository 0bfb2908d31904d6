"""What a dry run's report says: sums that are exact whatever is cut off, and every finding with its examples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.policy import precheck
from shared.policy.paths import sort_key
from shared.policy.precheck import Place, Precheck
from tests.support.runs import record

FOLDER = [Place("", "folder")]
LIBRARY = [Place("", "sharepoint")]


def planned(path: str, size_bytes: int = 3, action: str = "create", **changes: Any) -> Mapping[str, Any]:
    return record(path, "planned", size_bytes=size_bytes, action=action, **changes)


def refused(path: str, code: str, detail: str = "is bad", status: str = "failed", **changes: Any) -> Mapping[str, Any]:
    return record(path, status, error_code=code, error_detail=detail, **changes)


def checked(rows: Iterable[Mapping[str, Any]], places: Sequence[Place] = FOLDER) -> Precheck:
    ordered = sorted(rows, key=lambda row: sort_key(row["path"]))
    check = Precheck(places)
    for row in ordered:
        check.add(row)
    if check.wants_second_look:
        for row in ordered:
            check.look_again(row)
    return check


def report(*rows: Mapping[str, Any], places: Sequence[Place] = FOLDER) -> dict[str, Any]:
    found = checked(rows, places).report()
    json.dumps(found).encode("utf-8")
    return found


def finding(found: dict[str, Any], kind: str) -> dict[str, Any]:
    (one,) = [one for one in found["findings"] if one["kind"] == kind]
    return dict(one)


def names(table: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    return {row["name"]: (row["items"], row["bytes"]) for row in table if row["items"]}


def test_nothing_at_all() -> None:
    found = report()
    assert (found["items"], found["bytes"], found["actions"], found["findings"]) == (0, 0, [], [])
    assert found["types"] == found["folders"] == {"rows": [], "others": None}
    assert found["largest"] == []


def test_sums_by_what_would_be_done() -> None:
    found = report(
        planned("a", 1), planned("b", 2, "replace"), planned("c", 4, "compare"), planned("d", 8, "rename"),
        planned("e", 0, "delete"), record("f", "skipped", size_bytes=16),
        refused("g", "link_not_followed", status="skipped", size_bytes=0),
        refused("h", "target_exists", size_bytes=32),
    )  # fmt: skip
    assert [(row["action"], row["items"], row["bytes"]) for row in found["actions"]] == [
        ("create", 1, 1), ("replace", 1, 2), ("compare", 1, 4), ("rename", 1, 8), ("delete", 1, 0), ("skip", 1, 16),
        ("leave_out", 1, 0), ("fail", 1, 32),
    ]  # fmt: skip
    # What would be deleted is in the lake, not in the source.
    assert (found["items"], found["bytes"]) == (7, 63)
    assert (found["moving_items"], found["moving_bytes"]) == (3, 7)


def test_sums_by_type() -> None:
    rows = [planned(path, 10) for path in (
        "a.pdf", "b.PDF", "d/c.Pdf", "tar.gz", ".profile", "noext", "ends.", "x.a name", "x.averyveryverylong", "x.é",
    )]  # fmt: skip
    assert names(report(*rows)["types"]["rows"]) == {"pdf": (3, 30), "gz": (1, 10), "é": (1, 10), "": (5, 50)}


def test_sums_by_top_level_folder() -> None:
    found = report(planned("a/1", 1), planned("a/b/2", 2), planned("a.txt", 4), planned("b/3", 8), planned("z.txt", 16))
    assert names(found["folders"]["rows"]) == {"/": (2, 20), "a": (2, 3), "b": (1, 8)}


def test_several_sources_have_their_own_folders_and_sums() -> None:
    places = [Place("lib", "sharepoint"), Place("share/x", "folder")]
    check = checked(
        [planned("lib/a/1", 1), planned("lib/2", 2), planned("share/x/a/3", 4), planned("share/x/4", 8)], places
    )
    found = check.report()
    assert names(found["folders"]["rows"]) == {
        "lib/": (1, 2), "lib/a": (1, 1), "share/x/": (1, 8), "share/x/a": (1, 4),
    }  # fmt: skip
    assert [(row["target_path"], row["type"], row["bytes"]) for row in found["sources"]] == [
        ("lib", "sharepoint", 3), ("share/x", "folder", 12),
    ]  # fmt: skip
    assert check.load() == (4, 15)
    assert check.load("sharepoint") == (2, 3)
    assert check.load("blob") == (0, 0)


def test_sums_by_size() -> None:
    sizes = [0, 1, 2**16, 2**16 + 1, 2**20, 2**23, 2**23 + 1, 2**30, 2**30 + 1, 10 * 2**30, 10 * 2**30 + 1]
    found = report(*(planned(f"f{number}", size) for number, size in enumerate(sizes)))
    assert {name: items for name, (items, _) in names(found["sizes"]).items()} == {
        "empty": 1, "up to 64 KiB": 2, "up to 1 MiB": 2, "up to 8 MiB": 1, "up to 128 MiB": 1, "up to 1 GiB": 1,
        "up to 10 GiB": 2, "more than 10 GiB": 1,
    }  # fmt: skip
    assert found["largest"][0] == {"path": "f10", "bytes": 10 * 2**30 + 1}
    assert len(found["largest"]) == 10


_SIZES = st.integers(0, 2**40)
_SOME = st.dictionaries(
    st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 40), st.sampled_from(["pdf", "txt", "x", ""])), _SIZES
)


@given(_SOME)
def test_no_item_is_lost_whatever_is_cut_off(some: dict[tuple[str, int, str], int]) -> None:
    rows = [planned(f"{top}/{number}.{kind}" if number % 5 else f"{top}{number}.{kind}", size)
            for (top, number, kind), size in some.items()]  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(precheck, "_ROWS", 2)
        patched.setattr(precheck, "_MAX_TYPES", 2)
        found = report(*rows)
    for table in ("types", "folders"):
        shown = [*found[table]["rows"], found[table]["others"] or {"items": 0, "bytes": 0}]
        assert sum(row["items"] for row in shown) == len(rows)
        assert sum(row["bytes"] for row in shown) == sum(row["size_bytes"] for row in rows)
        assert len(found[table]["rows"]) <= 3
    assert sum(row["items"] for row in found["sizes"]) == len(rows)
    by_folder: Counter[str] = Counter()
    for row in rows:
        if "/" in row["path"]:
            by_folder[row["path"].partition("/")[0]] += row["size_bytes"]
    kept = [row["bytes"] for row in found["folders"]["rows"] if row["name"] != "/"]
    assert kept == [size for _, size in by_folder.most_common(2)]


def test_a_name_that_is_mapped_shows_both_names() -> None:
    found = finding(report(planned("a%2E", source={"source_path": "a."}), planned("b%2541", source={
        "source_path": "b%41"}), places=LIBRARY), "name_mapped")  # fmt: skip
    assert found["items"] == 2
    assert found["examples"][0]["path"] == "a."
    assert found["examples"][0]["detail"].startswith("a%2E: the name has the segment 'a.'")
    assert found["examples"][1]["detail"] == "b%2541: the name would read as an escape"


def test_a_path_that_is_too_long_is_told_from_a_name_that_does_not_go() -> None:
    found = report(refused("x" * 1100, "unmappable_path"), refused("bad.", "unmappable_path", "ends in a dot"))
    assert finding(found, "path_too_long")["items"] == 1
    assert finding(found, "unmappable_path")["examples"] == [{"path": "bad.", "detail": "ends in a dot"}]
    assert found["longest_path"]["characters"] == len("Files/job/") + 1100
    assert found["deepest_path"]["segments"] == 3


def test_what_fails_stands_before_what_is_left_out_and_what_is_only_told() -> None:
    found = report(
        planned("letter.docx", 5, source={"checked_out_by": "eve@contoso.example"}),
        refused("notes", "package_not_a_file", "is a notebook", "skipped"),
        refused("virus.exe", "malware_detected"), refused("virus2.exe", "malware_detected", size_bytes=7),
        refused("odd", "something_new", "is odd"), places=LIBRARY,
    )  # fmt: skip
    assert [(one["kind"], one["severity"], one["items"], one["bytes"]) for one in found["findings"]] == [
        ("malware_detected", "fails", 2, 10), ("something_new", "fails", 1, 3),
        ("package_not_a_file", "left_out", 1, 3), ("checked_out", "notice", 1, 5), ("office_documents", "notice", 1, 5),
    ]  # fmt: skip
    assert finding(found, "checked_out")["examples"] == [{"path": "letter.docx", "detail": "by eve@contoso.example"}]


def test_documents_of_a_folder_are_what_they_are() -> None:
    assert report(planned("letter.docx"))["findings"] == []


def test_examples_are_few_and_sums_are_whole() -> None:
    found = finding(report(*(refused(f"f{number:03d}", "locked") for number in range(250))), "locked")
    assert (found["items"], len(found["examples"]), found["examples"][0]["path"]) == (250, 10, "f000")


def test_any_number_of_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precheck, "_KINDS", 3)
    found = report(*(refused(f"f{number}", f"code_{number}") for number in range(9)))
    assert len(found["findings"]) == 4
    assert finding(found, "other")["items"] == 6


def test_twins_by_case() -> None:
    found = report(
        planned("A/x", 5), planned("a/x", 5), planned("a/y"), planned("gone", 0, "delete"), planned("GONE"),
        refused("Link", "link_not_followed", status="skipped"), planned("link"),
    )  # fmt: skip
    assert finding(found, "case_twins")["examples"] == [{"path": "a/x", "detail": "beside A/x"}]
    assert finding(found, "case_twins")["bytes"] == 5
    assert finding(found, "case_twin_folders")["examples"] == [{"path": "a", "detail": "beside A"}]
    assert all(one["is_exact"] for one in found["findings"])


def test_a_name_of_a_file_and_a_folder() -> None:
    found = report(planned("a", 7), planned("a/b"), planned("a/c"), planned("a.b"), planned("a/c/d"),
                   places=[Place("", "blob")])  # fmt: skip
    assert finding(found, "file_and_folder")["examples"] == [
        {"path": "a", "detail": "a file, and the folder of a/b"},
        {"path": "a/c", "detail": "a file, and the folder of a/c/d"},
    ]
    # A mirrored file that gave way to a folder is no such thing.
    assert report(planned("a", 0, "delete"), planned("a/b"))["findings"] == []


def test_names_that_are_no_text_and_endless_ones_can_be_shown() -> None:
    found = report(planned("caf\udce9/x"), refused("y" * 9000, "unmappable_path"))
    assert found["folders"]["rows"][0]["name"] == "/"
    assert found["folders"]["rows"][1]["name"] == "caf\\xe9"
    assert len(finding(found, "path_too_long")["examples"][0]["path"]) == 2000


def test_a_row_of_another_source_is_a_bug() -> None:
    with pytest.raises(LookupError):
        checked([planned("elsewhere/x")], [Place("lib", "sharepoint")])
