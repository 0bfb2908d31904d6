"""What a job does with files that are there already, which files it takes, and what it leaves alone."""

import pytest

from tests.support.platform import Lake, Platform, compare, files_below, make_files


@pytest.fixture
def occupied(platform: Platform, request: pytest.FixtureRequest) -> tuple[Platform, str]:
    """A target that holds, without any ledger: the same file, one of the same size, one of another size."""
    name = request.node.callspec.params["existing"].replace("_", "-")
    source, lake = platform.source(name), Lake(platform.emulators)
    for path, data in {"same.bin": b"same", "other.bin": b"mine", "size.bin": b"longer", "new.bin": b"new"}.items():
        (source / path).write_bytes(data)
    for path, data in {"same.bin": b"same", "other.bin": b"your", "size.bin": b"no", "stranger.bin": b"?"}.items():
        lake.write(f"Files/{name}/{path}", data)
    return platform, name


@pytest.mark.parametrize(("existing", "ending", "wanted"), [
    ("skip_identical", "completed", {"same.bin": "skipped", "other.bin": "uploaded", "size.bin": "uploaded"}),
    ("overwrite", "completed", {"same.bin": "uploaded", "other.bin": "uploaded", "size.bin": "uploaded"}),
    ("fail", "completed_with_failures", {"same.bin": "skipped", "other.bin": "failed", "size.bin": "failed"}),
])  # fmt: skip
def test_existing(
    occupied: tuple[Platform, str], existing: str, ending: str, wanted: dict[str, str]
) -> None:  # fmt: skip
    platform, name = occupied
    mark = platform.mark()
    document = platform.run(platform.spec(name, existing=existing, verify="all"), ending)
    failed = [path for path, status in wanted.items() if status == "failed"]
    manifest = platform.assert_agreement(document["id"], name, lake_has_extra=["stranger.bin", *failed])
    assert {item["path"]: item["status"] for item in manifest["items"]} == {**wanted, "new.bin": "uploaded"}
    assert all(item["error_code"] == "target_exists" for item in manifest["items"] if item["status"] == "failed")
    assert set(platform.commits(name, mark)) == {path for path, status in {**wanted, "new.bin": "uploaded"}.items()
                                                 if status == "uploaded"}  # fmt: skip
    if existing == "fail":
        assert (platform.lake(name) / "other.bin").read_bytes() == b"your"
        assert (platform.lake(name) / "size.bin").read_bytes() == b"no"


def test_include_and_exclude(platform: Platform) -> None:
    source = platform.source("globs")
    for path in ("a.pdf", "b.PDF", "deep/er/c.pdf", "deep/d.txt", "tmp/e.pdf", "tmp/keep/f.pdf", "~g.pdf", "h[1].pdf"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(path.encode())
    run = platform.run(platform.spec("globs", include=["**/*.pdf"], exclude=["tmp/**", "~*"]))["id"]
    taken = {"a.pdf", "deep/er/c.pdf", "h[1].pdf"}
    assert set(files_below(platform.lake("globs"))) == taken
    assert {item["path"] for item in platform.manifest(run)["items"]} == taken


def test_a_dry_run_touches_nothing(platform: Platform) -> None:
    make_files(platform.source("dry"), 25)
    mark = platform.mark()
    run = platform.run(platform.spec("dry", dry_run=True, verify="all"))["id"]
    assert [one for one in platform.emulators.journal()[mark:] if "/dry" in one["path"]] == []
    assert not platform.lake("dry").exists()
    manifest = platform.manifest(run)
    assert manifest["counts"] == {"items": 25, "planned": 25}
    assert {(item["action"], item["error_detail"]) for item in manifest["items"]} == {("create", None)}
    progress = platform.status(run)["progress"]
    assert (progress["planned"], progress["uploaded"], progress["bytes_done"]) == (25, 0, 0)
    # A dry run leaves no memory behind that would make the real one skip.
    assert platform.run(platform.spec("dry"))["progress"]["uploaded"] == 25
    again = platform.run(platform.spec("dry", dry_run=True))["id"]
    assert platform.manifest(again)["counts"] == {"items": 25, "skipped": 25}
    assert platform.call("DELETE", f"/migrations/{again}").status == 200


def test_an_empty_source_and_empty_files(platform: Platform) -> None:
    platform.source("empty")
    document = platform.run(platform.spec("empty", verify="all"))
    assert document["progress"]["planned"] == 0
    assert platform.manifest(document["id"])["items"] == []
    (platform.source("empty") / "nothing.bin").write_bytes(b"")
    document = platform.run(platform.spec("empty", verify="all"))
    assert document["progress"]["uploaded"] == 1
    assert not compare(platform.source("empty"), platform.lake("empty"))
    assert platform.run(platform.spec("empty", verify="all"))["progress"]["skipped"] == 1


def test_leftovers_of_another_day_are_cleared_and_others_left(platform: Platform) -> None:
    """A staging file of this job goes with its next run; one of another job is not this job's to judge."""
    make_files(platform.source("left"), 3)
    platform.run(platform.spec("left"))
    lake = Lake(platform.emulators)
    (platform.source("left") / "d0" / "f0000.bin").write_bytes(b"changed")
    platform.run(platform.spec("left"))
    renamed = next(one for one in platform.effects("left") if one["operation"] == "rename")
    own = renamed["source"].partition("Files/left/")[2]
    foreign = "d0/.olm-staging-00000000-aaaa"
    for path in (own, foreign):
        lake.write(f"Files/left/{path}", b"half")
    run = platform.run(platform.spec("left", verify="all"))["id"]
    platform.assert_agreement(run, "left", lake_has_extra=[foreign])


def test_three_step_uploads(platform: Platform) -> None:
    make_files(platform.source("three"), 10)
    run = platform.run(platform.spec("three", verify="all", limits={"upload_sequence": "three_step"}))["id"]
    platform.assert_agreement(run, "three")
    assert {one["operation"] for one in platform.effects("three")} == {"create", "append", "flush"}


def test_many_pages(platform: Platform) -> None:
    """More batches than one page of the plan holds: every page is planned, moved, verified and written down."""
    make_files(platform.source("pages"), 450, high=60)
    run = platform.run(platform.spec("pages", verify="all", limits={"batch_items": 1, "parallel_batches": 32}))["id"]
    manifest = platform.assert_agreement(run, "pages")
    assert len({item["batch"].partition("/")[0] for item in manifest["items"]}) == 3
    assert not compare(platform.source("pages"), platform.lake("pages"))
    seen: list[str] = []
    continuation = ""
    while True:
        page = platform.get(f"/migrations/{run}/items?top=70{continuation}").json
        seen += [item["path"] for item in page["value"]]
        if page["continuation"] is None:
            break
        continuation = f"&continuation={page['continuation']}"
    assert seen == [item["path"] for item in manifest["items"]]
