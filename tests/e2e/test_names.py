"""Names from hell: each is moved, skipped or refused, and stands in every format of the manifest as what it is."""

import csv
import io
import os
import unicodedata

import pytest

from tests.support.platform import Platform, compare

_MOVED = (
    "with space.txt", "#hash#.txt", "100%.txt", "a+b.txt", "you&me.txt", "it's.txt", 'say "hi".txt', "😀 emoji.txt",
    unicodedata.normalize("NFC", "café.txt"), unicodedata.normalize("NFD", "café.txt"), "Case.txt", "case.txt",
    "n" * 200, "literal%41.txt", "literalA.txt", "%2e%2e", "-dash", "--rf", "=1+1", "@sum", "trailing space ",
    " leading space", "tilde~1", "a;b,c.csv", "q?query=1", "[brackets]*.txt", "{braces}", "<b>bold</b>.txt",
    "`tick`", "$(whoami)", "pipe|", "con.txt", "...dots", "right\u200fto\u200eleft", "deep/d e/é/#/file",
    "zero\u200bwidth",
    "_under_score_", "colon:name",
)  # fmt: skip
_REFUSED = (
    b"trailing dot.",
    b"back\\slash",
    b"tab\there",
    b"new\nline",
    b"\x7fdelete",
    b"latin-1 \xe9",
    b"folder./inside",
)
_SKIPPED = {"link": "link_not_followed", "folder-link": "link_not_followed", "dangling": "link_not_followed",
            "pipe": "not_a_file"}  # fmt: skip


@pytest.fixture(scope="module")
def moved(platform: Platform) -> tuple[Platform, str]:
    """A finished run over all of them."""
    source = platform.source("hell")
    for name in (*(os.fsencode(name) for name in _MOVED), *_REFUSED):
        file = source / os.fsdecode(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"content of " + name)
    (source / "link").symlink_to(source / "case.txt")
    (source / "folder-link").symlink_to(source / "deep")
    (source / "dangling").symlink_to(source / "nowhere")
    os.mkfifo(source / "pipe")
    run = platform.run(platform.spec("hell", verify="all"), "completed_with_failures")["id"]
    return platform, run


def test_every_name_is_accounted_for(moved: tuple[Platform, str]) -> None:
    platform, run = moved
    manifest = platform.assert_agreement(run, "hell")
    records = {item["path"]: item for item in manifest["items"]}
    assert {path for path, item in records.items() if item["status"] == "uploaded"} == set(_MOVED)
    assert {path: item["error_code"] for path, item in records.items() if item["status"] == "skipped"} == _SKIPPED
    refused = {os.fsdecode(name): "unmappable_path" for name in _REFUSED}
    assert {path: item["error_code"] for path, item in records.items() if item["status"] == "failed"} == refused
    assert all(item["error_detail"] for item in records.values() if item["status"] != "uploaded")
    assert manifest["verification"]["hashes_checked"] == len(_MOVED)
    difference = compare(platform.source("hell"), platform.lake("hell"))
    assert sorted(difference.missing) == sorted(refused)
    assert not difference.extra
    assert not difference.different


def test_the_table_holds_every_name_and_no_formula(moved: tuple[Platform, str]) -> None:
    platform, run = moved
    answer = platform.get(f"/migrations/{run}/manifest?format=csv")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.body.decode("utf-8"), newline="")))
    assert len(rows) == len(_MOVED) + len(_REFUSED) + len(_SKIPPED)
    found = {row["path"] for row in rows}
    for name in (*_MOVED, *_SKIPPED):
        assert (f"'{name}" if name[0] in "=+-@" else name) in found, name
    assert not [cell for row in rows for cell in row.values() if cell[:1] in ("=", "+", "-", "@")]
    # Bytes that are no UTF-8 are shown, not dropped.
    assert [path for path in found if path.startswith("latin-1 ") and "e9" in path]


def test_the_pages_for_people_show_failures_and_run_nothing(moved: tuple[Platform, str]) -> None:
    platform, run = moved
    page = platform.get(f"/migrations/{run}/manifest?format=html")
    assert page.headers["content-type"].startswith("text/html")
    text = page.body.decode("utf-8")
    assert text.count("unmappable_path") == len(_REFUSED)
    assert "<b>bold" not in text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    markdown = platform.get(f"/migrations/{run}/manifest?format=md")
    assert markdown.headers["content-type"].startswith("text/markdown")
    lines = markdown.body.decode("utf-8").splitlines()
    assert len([line for line in lines if "unmappable" in line and line.startswith("| ")]) == len(_REFUSED)


def test_names_that_markup_would_act_on(platform: Platform) -> None:
    source = platform.source("markup")
    (source / "<script>alert(1)<").mkdir()
    (source / "<script>alert(1)<" / "x.").write_bytes(b"x")
    run = platform.run(platform.spec("markup"), "completed_with_failures")["id"]
    for form in ("html", "md"):
        assert b"<script" not in platform.get(f"/migrations/{run}/manifest?format={form}").body


def test_items_by_name_over_the_api(moved: tuple[Platform, str]) -> None:
    platform, run = moved
    failed = platform.get(f"/migrations/{run}/items?status=failed").json["value"]
    assert {item["path"] for item in failed} == {os.fsdecode(name) for name in _REFUSED}


def test_a_rerun_recognises_every_name(moved: tuple[Platform, str]) -> None:
    platform, _ = moved
    mark = platform.mark()
    document = platform.run(platform.spec("hell", verify="all"), "completed_with_failures")
    assert document["progress"]["uploaded"] == 0
    assert platform.effects("hell", mark) == []
    for name in _MOVED:
        (platform.source("hell") / name).write_bytes(b"replaced")
    document = platform.run(platform.spec("hell", verify="all"), "completed_with_failures")
    assert document["progress"]["uploaded"] == len(_MOVED)
    platform.assert_agreement(document["id"], "hell")


def test_a_literal_percent_is_not_decoded_on_replacing(moved: tuple[Platform, str]) -> None:
    """``literal%41.txt`` and ``literalA.txt`` are two files; a rename that decodes once too often makes them one."""
    platform, _ = moved
    source = platform.source("hell")
    (source / "literal%41.txt").write_bytes(b"percent")
    (source / "literalA.txt").write_bytes(b"letter")
    platform.run(platform.spec("hell"), "completed_with_failures")
    assert (platform.lake("hell") / "literal%41.txt").read_bytes() == b"percent"
    assert (platform.lake("hell") / "literalA.txt").read_bytes() == b"letter"
