"""Job specs: the documented example as it stands, every field, and errors that name the field."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shared.model.job import FilesJob, SpecError, is_guid, parse_job

DOCUMENTED = """
kind: files
name: invoices                       # [a-z0-9-]{1,40}; names the job's ledger
source:
  {type: folder, path: /mnt/invoices}            # only under a root listed in FOLDER_SOURCE_ROOTS
include: ["**/*.pdf"]                # globs on the relative path; default everything
exclude: []
target: {workspace: Finance, lakehouse: Landing, path: Files/invoices, credential: onelake}
mode: full                           # full | incremental (delta token or ledger)
existing: skip_identical             # skip_identical | overwrite | fail
deleted: keep                        # keep | mirror   (incremental: what to do when the source lost an item)
verify: sample                       # none | listing (count, bytes) | sample (listing + N re-read hashes) | all
limits: {batch_items: 100, batch_bytes: 256MiB, parallel_batches: 16, concurrency: auto, bandwidth: null,
         upload_sequence: auto}
dry_run: false
"""


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "files", "name": "invoices", "source": {"type": "folder", "path": "/mnt/invoices"},
        "target": {"workspace": "W", "lakehouse": "L", "path": "Files/invoices"}, **changes,
    }  # fmt: skip


def refusal(document: Any) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse_job(document)
    assert caught.value.details
    assert caught.value.details[0]["message"]
    return caught.value


def test_the_documented_spec_is_accepted_as_it_stands() -> None:
    job = parse_job(yaml.safe_load(DOCUMENTED))
    assert job.limits.batch_bytes == 256 * 2**20
    assert job.limits.bandwidth is None
    assert job.limits.concurrency == "auto"
    assert job.include == ["**/*.pdf"]
    assert job == parse_job(spec(include=["**/*.pdf"], target={
        "workspace": "Finance", "lakehouse": "Landing", "path": "Files/invoices"}))  # fmt: skip


def test_what_was_accepted_is_accepted_again_as_it_was_stored() -> None:
    job = parse_job(spec(
        include=["**/*.{pdf,tif}"], exclude=["tmp/**"], mode="incremental", existing="fail", deleted="mirror",
        verify="all", dry_run=True, schedule="0 0 2 * * *",
        limits={"batch_items": 1, "batch_bytes": "1MiB", "parallel_batches": 256, "concurrency": 8,
                "bandwidth": "50MiB/s", "upload_sequence": "three_step"},
    ))  # fmt: skip
    assert job.limits.bandwidth == 50 * 2**20
    assert parse_job(job.model_dump(mode="json")) == job


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("mode", value) for value in ("full", "incremental")),
        *(("existing", value) for value in ("skip_identical", "overwrite", "fail")),
        *(("verify", value) for value in ("none", "listing", "sample", "all")),
        *(("dry_run", value) for value in (True, False)),
        *(("name", value) for value in ("a", "0-a", "a" * 40)),
        ("deleted", "keep"),
    ],
)
def test_every_documented_value(field: str, value: object) -> None:
    assert getattr(parse_job(spec(**{field: value})), field) == value


@pytest.mark.parametrize(
    ("changes", "path", "said"),
    [
        ({"name": "Invoices"}, "name", "pattern"),
        ({"name": "a" * 41}, "name", "pattern"),
        ({"name": "a\n"}, "name", "pattern"),
        ({"source": {"type": "folder", "path": ""}}, "source.path", "at least 1"),
        ({"source": {"type": "folder", "path": "/mnt/../etc"}}, "source.path", "'..'"),
        ({"source": {"type": "folder", "path": "/mnt\\..\\etc"}}, "source.path", "'..'"),
        ({"source": {"type": "folder", "path": "/a\x00b"}}, "source.path", "NUL"),
        ({"source": {"type": "ftp", "path": "/a"}}, "source.type", "folder"),
        ({"source": {"type": "folder"}}, "source.path", "required"),
        ({"include": ["*.pdf", "[a"]}, "include[1]", "'[' without its ']'"),
        ({"include": ["/a"]}, "include[0]", "relative"),
        ({"exclude": ["a**"]}, "exclude[0]", "stand alone"),
        ({"include": [3]}, "include[0]", "string"),
        ({"include": "*.pdf"}, "include", "list"),
        ({"target": {"workspace": "W", "lakehouse": "L", "path": "x"}}, "target.path", "Files/"),
        ({"target": {"workspace": "", "lakehouse": "L", "path": "Files"}}, "target.workspace", "at least 1"),
        ({"target": {"workspace": "''", "lakehouse": "L", "path": "Files"}}, "target.workspace", "display name"),
        ({"target": {"workspace": "a/b", "lakehouse": "L", "path": "Files"}}, "target.workspace", "slashes"),
        ({"target": {"workspace": "W", "path": "Files"}}, "target.lakehouse", "required"),
        ({"target": {"workspace": "W", "lakehouse": "L", "path": "Files", "credential": "A B"}}, "target.credential",
         "pattern"),
        ({"mode": "delta"}, "mode", "'full'"),
        ({"existing": "skip"}, "existing", "'skip_identical'"),
        ({"deleted": "mirror"}, "deleted", "mode: incremental"),
        ({"verify": True}, "verify", "'none'"),
        ({"limits": {"batch_items": 0}}, "limits.batch_items", "greater than or equal to 1"),
        ({"limits": {"batch_items": 1001}}, "limits.batch_items", "less than or equal to 1000"),
        ({"limits": {"batch_bytes": "1 lot"}}, "limits.batch_bytes", "256MiB"),
        ({"limits": {"batch_bytes": "1KiB"}}, "limits.batch_bytes", "greater than or equal"),
        ({"limits": {"bandwidth": "50MiB"}}, "limits.bandwidth", "50MiB/s"),
        ({"limits": {"concurrency": "many"}}, "limits.concurrency", "integer"),
        ({"limits": {"concurrency": 0}}, "limits.concurrency", "greater than or equal"),
        ({"limits": {"upload_sequence": "one"}}, "limits.upload_sequence", "'auto'"),
        ({"limits": {"batchitems": 5}}, "limits.batchitems", "not permitted"),
        ({"schedule": "every day"}, "schedule", "every day"),
        ({"interval": 5}, "interval", "not permitted"),
        ({"integrity": 5}, "integrity", "not permitted"),
        ({"dry_run": "perhaps"}, "dry_run", "boolean"),
    ],
)  # fmt: skip
def test_an_error_names_the_field(changes: dict[str, Any], path: str, said: str) -> None:
    error = refusal(spec(**changes))
    assert error.details[0]["path"] == path
    assert said in error.details[0]["message"]
    assert error.message.startswith(f"{path}: ")


def test_every_field_at_fault_is_named() -> None:
    error = refusal(spec(name="A", mode="x", limits={"batch_items": 0}))
    assert [detail["path"] for detail in error.details] == ["name", "mode", "limits.batch_items"]


@pytest.mark.parametrize(
    ("document", "path", "said"),
    [
        ([], "", "object"),
        (None, "", "object"),
        ({}, "kind", "missing; one of: files"),
        ({"kind": "sharks"}, "kind", "unknown kind 'sharks'"),
        ({"kind": ["files"]}, "kind", "unknown kind"),
    ],
)
def test_what_is_no_spec(document: Any, path: str, said: str) -> None:
    error = refusal(document)
    assert error.details[0]["path"] == path
    assert said in error.details[0]["message"]


def test_guids_as_a_portal_copies_them() -> None:
    guid = "a1b2c3d4-0001-4000-8000-00000000000A"
    job = parse_job(spec(target={"workspace": f' "{guid}"\n', "lakehouse": f"'{guid}'", "path": "Files/x/"}))
    assert is_guid(job.target.workspace)
    assert is_guid(job.target.lakehouse)
    assert job.target.path == "Files/x"
    assert not is_guid(f"{guid}0")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([*FilesJob.model_fields, "surplus"]), JSON)
def test_any_value_of_any_field_is_accepted_or_named(field: str, value: Any) -> None:
    try:
        job = parse_job(spec(**{field: value}))
    except SpecError as error:
        assert all(detail["path"].startswith(field) for detail in error.details)
    else:
        assert parse_job(job.model_dump(mode="json")) == job
