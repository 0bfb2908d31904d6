"""Specs that cannot be run: refused with the field named, and nothing started."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.platform import Lake, Platform, make_files


def _changed(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a spec with one field changed; ``...`` takes it away."""
    copy = json.loads(json.dumps(spec))
    *parents, last = path.split(".")
    place = copy
    for name in parents:
        place = place.setdefault(name, {})
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return dict(copy)


@pytest.fixture(scope="module", autouse=True)
def nothing_started(platform: Platform) -> Iterator[None]:
    make_files(platform.source("good"), 1)
    (platform.sources / "link-out").symlink_to(platform.root / "outside")
    (platform.root / "outside").mkdir()
    (platform.sources / "circle").symlink_to(platform.sources / "circle")
    (platform.sources / "plain-file").write_bytes(b"x")
    Lake(platform.emulators).write("Files/taken", b"a file")
    yield
    assert platform.get("/migrations").json == {"value": [], "continuation": None}
    assert not list((platform.store / "runs").rglob("*"))
    assert not list((platform.store / "jobs").rglob("*"))
    assert not platform.lake("good").exists()


_WRONG: list[tuple[str, Any, str]] = [
    ("kind", "folders", "kind"),
    ("kind", ..., "kind"),
    ("kind", 7, "kind"),
    ("kind", ["files"], "kind"),
    ("kind", {"a": 1}, "kind"),
    ("name", "Upper", "name"),
    ("name", "", "name"),
    ("name", "x" * 41, "name"),
    ("name", "a/b", "name"),
    ("name", "newline\n", "name"),
    ("name", 5, "name"),
    ("name", ..., "name"),
    ("source", ..., "source"),
    ("source", "folder", "source"),
    ("source.type", "ftp", "source.type"),
    ("source.path", ..., "source.path"),
    ("source.path", "", "source.path"),
    ("source.path", "/etc", "source.path"),
    ("source.path", "/", "source.path"),
    ("source.path", "relative", "source.path"),
    ("source.path", "SOURCES/good/../good", "source.path"),
    ("source.path", "SOURCES/../../etc", "source.path"),
    ("source.path", "SOURCES/nowhere", "source.path"),
    ("source.path", "SOURCES/link-out", "source.path"),
    ("source.path", "SOURCES/plain-file", "source.path"),
    ("source.path", "SOURCES/circle", "source.path"),
    ("source.path", "SOURCES-beside", "source.path"),
    ("source.path", "SOURCES/nul\x00byte", "source.path"),
    ("source.path", "SOURCES/" + "x" * 300, "source.path"),
    ("source.path", "SOURCES/lone\ud800surrogate", "source.path"),
    ("source.path", 3, "source.path"),
    ("source.secret", "hunter2", "source.secret"),
    ("include", "**/*.pdf", "include"),
    ("include", ["ok", "[unclosed"], "include[1]"),
    ("exclude", ["{a,b"], "exclude[0]"),
    ("exclude", [""], "exclude[0]"),
    ("exclude", [3], "exclude[0]"),
    ("include", ["{a,b}" * 40], "include[0]"),
    ("target", ..., "target"),
    ("target.workspace", "", "target.workspace"),
    ("target.workspace", "a/b", "target.workspace"),
    ("target.lakehouse", ..., "target.lakehouse"),
    ("target.path", "Elsewhere/x", "target.path"),
    ("target.path", "", "target.path"),
    ("target.path", "/", "target.path"),
    ("target.path", "Files/../Tables", "target.path"),
    ("target.path", "Files//x", "target.path"),
    ("target.path", "Files/x.", "target.path"),
    ("target.path", "Files/a\\b", "target.path"),
    ("target.path", "Files/tab\there", "target.path"),
    ("target.path", "files/x", "target.path"),
    ("target.path", "Files/" + "d/" * 60 + "x", "target.path"),
    ("target.path", "Files/" + "x" * 1100, "target.path"),
    ("target.path", "Files/taken", "target.path"),
    ("target.path", "Files/taken/below", "target.path"),
    ("target.credential", "nobody", "target.credential"),
    ("target.credential", "../x", "target.credential"),
    ("mode", "partial", "mode"),
    ("existing", "maybe", "existing"),
    ("deleted", "mirror", "deleted"),
    ("deleted", "forget", "deleted"),
    ("verify", True, "verify"),
    ("verify", "some", "verify"),
    ("limits", [], "limits"),
    ("limits.batch_items", 0, "limits.batch_items"),
    ("limits.batch_items", 1001, "limits.batch_items"),
    ("limits.batch_items", "ten", "limits.batch_items"),
    ("limits.batch_items", 1.5, "limits.batch_items"),
    ("limits.batch_items", None, "limits.batch_items"),
    ("limits.batch_bytes", "256 potatoes", "limits.batch_bytes"),
    ("limits.batch_bytes", "-1MiB", "limits.batch_bytes"),
    ("limits.batch_bytes", "1KiB", "limits.batch_bytes"),
    ("limits.batch_bytes", {}, "limits.batch_bytes"),
    ("limits.parallel_batches", 100000, "limits.parallel_batches"),
    ("limits.concurrency", "many", "limits.concurrency"),
    ("limits.bandwidth", "50MiB", "limits.bandwidth"),
    ("limits.bandwidth", "fast/s", "limits.bandwidth"),
    ("limits.bandwidth", "0MiB/s", "limits.bandwidth"),
    ("limits.upload_sequence", "two_step", "limits.upload_sequence"),
    ("limits.speed", 1, "limits.speed"),
    ("dry_run", "perhaps", "dry_run"),
    ("dry_run", None, "dry_run"),
    ("schedule", "0 0 2 * * *", "schedule"),
    ("schedule", "whenever", "schedule"),
    ("colour", "blue", "colour"),
    ("Name", "x", "Name"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "named"), _WRONG, ids=[f"{i}-{one[0]}" for i, one in enumerate(_WRONG)])
def test_a_wrong_field_is_named(platform: Platform, path: str, value: Any, named: str) -> None:
    if isinstance(value, str):
        value = value.replace("SOURCES", str(platform.sources))
    answer = platform.post("/migrations", _changed(platform.spec("good"), path, value))
    assert answer.status == 400, answer.body[:500]
    assert named in answer.fields, answer.error
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.error["code"]
    assert all(detail["message"] for detail in answer.error["details"])
    assert len(answer.body) < 5000, "a refusal does not throw the spec back at the caller"


@pytest.mark.parametrize(("source", "named"), [
    ({"type": "blob", "account_url": "https://acct.blob.core.windows.net/?sv=1&sig=SECRET", "container": "abc"},
     "source.account_url"),
    ({"type": "blob", "account_url": "https://user:SECRET@evil.example", "container": "abc"}, "source.account_url"),
    ({"type": "sharepoint", "site": "https://user:SECRET@contoso.sharepoint.com/sites/x", "library": "A"},
     "source.site"),
    ({"type": "sharepoint", "site": "http://[::1/sites", "library": "A"}, "source.site"),
    ({"type": "sharepoint", "site": "contoso.sharepoint.com:/sites/finance", "library": "http://[bad/"},
     "source.library"),
    ({"type": "sharepoint", "site": "contoso.sharepoint.com:/sites/finance", "library": "Nope"}, "source.library"),
    ({"type": "sharepoint", "site": "contoso.sharepoint.com:/sites/nope", "library": "Nope"}, "source.site"),
    ({"type": "sharepoint", "site": "contoso.sharepoint.com:/sites/finance", "library": "Invoices", "folder": "9"},
     "source.folder"),
    ({"type": "sharepoint", "site": "contoso.sharepoint.com:/sites/finance", "library": "A", "credential": "none"},
     "source.credential"),
])  # fmt: skip
def test_a_wrong_source_is_named_and_no_secret_repeated(platform: Platform, source: dict[str, str], named: str) -> None:
    answer = platform.post("/migrations", {**platform.spec("good"), "source": source})
    assert answer.status == 400, answer.body[:500]
    assert answer.fields == [named], answer.error
    assert b"SECRET" not in answer.body


def test_every_fault_is_named_at_once(platform: Platform) -> None:
    spec = platform.spec("good", verify="x", mode="y", limits={"batch_items": 0}, more=1)
    assert set(platform.post("/migrations", spec).fields) == {"verify", "mode", "limits.batch_items", "more"}


@pytest.mark.parametrize("body", [
    b"", b"{", b"null", b"[]", b'"files"', b"3", b"\xff\xfe", b'{"kind": "files", "kind": ', b"[" * 100_000,
    b'{"kind": NaN}', b"\xef\xbb\xbf",
])  # fmt: skip
def test_a_body_that_is_no_spec(platform: Platform, body: bytes) -> None:
    answer = platform.call("POST", "/migrations", raw=body)
    assert answer.status == 400, answer.body[:300]
    assert answer.error["details"], answer.error


def test_a_body_of_ten_megabytes(platform: Platform) -> None:
    spec = json.dumps(platform.spec("good")).encode()
    answer = platform.call("POST", "/migrations", raw=spec[:-1] + b" " * 10_000_000 + b"}")
    assert answer.status == 400
    assert answer.fields == ["body"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-yaml", "", "application/json-seq", "multipart/form-data"]
)
def test_another_content_type(platform: Platform, kind: str) -> None:
    body = json.dumps(platform.spec("good")).encode()
    answer = platform.call("POST", "/migrations", raw=body, headers={"Content-Type": kind})
    assert answer.status == 400
    assert answer.fields == ["Content-Type"]


def test_a_source_that_becomes_a_link_out_of_the_roots(platform: Platform) -> None:
    """The real path is what counts, wherever in the path the link stands."""
    inside = platform.sources / "door"
    inside.symlink_to(platform.root)
    spec = _changed(platform.spec("good"), "source.path", str(inside / "outside"))
    assert platform.post("/migrations", spec).fields == ["source.path"]


def test_a_target_below_tables_is_taken(platform: Platform) -> None:
    """The other managed folder is a target too; what is refused must not be more than what is wrong."""
    answer = platform.call(
        "PUT", "/schedules/good", platform.spec("good", target_path="Tables/x", schedule="0 0 0 1 1 *")
    )
    assert answer.status == 201, answer.body
    assert platform.call("DELETE", "/schedules/good").status == 204
