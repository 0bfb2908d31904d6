"""What is done with an item: the truth table, and what must never happen whatever the evidence."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.policy.copying import Action, Existing, LakeEntry, LedgerEntry, decide

SIZE, VERSION = 7, "v1"
KNOWN = LedgerEntry(SIZE, VERSION, "hash", "e1")
OLDER_SAME_SIZE = LedgerEntry(SIZE, "v0", "hash", "e1")
OLDER = LedgerEntry(5, "v0", "hash", "e1")
OURS = LakeEntry(SIZE, "e1")
OURS_OLDER = LakeEntry(5, "e1")
FOREIGN_SAME_SIZE = LakeEntry(SIZE, "e9")
FOREIGN = LakeEntry(6, "e9")


@pytest.mark.parametrize(
    ("ledger", "lake", "skip_identical", "overwrite", "fail"),
    [
        (None, None, "create", "create", "create"),
        (KNOWN, None, "create", "create", "create"),
        (OLDER, None, "create", "create", "create"),
        (KNOWN, OURS, "skip", "replace", "skip"),
        (OLDER_SAME_SIZE, OURS, "compare", "replace", "replace"),
        (OLDER, OURS_OLDER, "replace", "replace", "replace"),
        (None, FOREIGN_SAME_SIZE, "compare", "replace", "compare"),
        (KNOWN, FOREIGN_SAME_SIZE, "compare", "replace", "compare"),
        (OLDER, FOREIGN_SAME_SIZE, "compare", "replace", "compare"),
        (None, FOREIGN, "replace", "replace", "fail"),
        (KNOWN, FOREIGN, "replace", "replace", "fail"),
        (OLDER, FOREIGN, "replace", "replace", "fail"),
    ],
)
def test_with_a_listing_of_the_lake(
    ledger: LedgerEntry | None, lake: LakeEntry | None, skip_identical: Action, overwrite: Action, fail: Action
) -> None:
    expected: dict[Existing, Action] = {"skip_identical": skip_identical, "overwrite": overwrite, "fail": fail}
    for existing, action in expected.items():
        assert decide(SIZE, VERSION, ledger, lake, lake_known=True, existing=existing) == action, existing


@pytest.mark.parametrize("existing", ["skip_identical", "overwrite", "fail"])
@pytest.mark.parametrize(
    ("ledger", "action"), [(None, "create"), (KNOWN, "skip"), (OLDER, "replace"), (OLDER_SAME_SIZE, "replace")]
)
def test_by_the_ledger_alone(ledger: LedgerEntry | None, action: Action, existing: Existing) -> None:
    assert decide(SIZE, VERSION, ledger, None, lake_known=False, existing=existing) == action


ETAGS = st.sampled_from(["e1", "e2"])
SIZES = st.integers(0, 2)
VERSIONS = st.sampled_from(["v0", "v1"])
LEDGERS = st.none() | st.builds(LedgerEntry, SIZES, VERSIONS, st.just("hash"), ETAGS)
LAKES = st.none() | st.builds(LakeEntry, SIZES, ETAGS)
POLICIES = st.sampled_from(["skip_identical", "overwrite", "fail"])


@given(SIZES, VERSIONS, LEDGERS, LAKES, st.booleans(), POLICIES)
def test_never_skipped_unless_the_evidence_agrees(
    size_bytes: int, version: str, ledger: LedgerEntry | None, lake: LakeEntry | None, lake_known: bool,
    existing: Existing,
) -> None:  # fmt: skip
    if decide(size_bytes, version, ledger, lake, lake_known=lake_known, existing=existing) != "skip":
        return
    assert ledger is not None
    assert ledger.source_version == version
    if lake_known:
        assert lake is not None
        assert (lake.size_bytes, lake.etag) == (ledger.size_bytes, ledger.etag)


@given(SIZES, VERSIONS, LEDGERS, LAKES, POLICIES)
def test_never_overwritten_where_the_job_forbids_it(
    size_bytes: int, version: str, ledger: LedgerEntry | None, lake: LakeEntry | None, existing: Existing
) -> None:
    """With ``existing: fail``, only what this job put there itself, and nobody touched since, may be replaced."""
    action = decide(size_bytes, version, ledger, lake, lake_known=True, existing="fail")
    if action == "replace":
        assert ledger is not None
        assert lake is not None
        assert (lake.size_bytes, lake.etag) == (ledger.size_bytes, ledger.etag)


def test_every_combination_is_decided() -> None:
    ledgers = [None, KNOWN, OLDER, OLDER_SAME_SIZE]
    lakes = [None, OURS, OURS_OLDER, FOREIGN, FOREIGN_SAME_SIZE]
    for ledger, lake, known, existing in itertools.product(
        ledgers, lakes, [True, False], ["skip_identical", "overwrite", "fail"]
    ):
        assert decide(SIZE, VERSION, ledger, lake, lake_known=known, existing=existing) in {
            "create", "replace", "compare", "skip", "fail",
        }  # fmt: skip
