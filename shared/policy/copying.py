"""What to do with a source item, given what the ledger and the lake say."""

from dataclasses import dataclass
from typing import Literal

Existing = Literal["skip_identical", "overwrite", "fail"]
Action = Literal["create", "replace", "compare", "skip", "fail"]


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What this job knows of a file in the lake; without a ``hash``, what was found damaged there.

    ``own``: this job wrote it, rather than found it there with the same content.
    """

    size_bytes: int
    source_version: str
    hash: str
    etag: str
    own: bool = True


@dataclass(frozen=True, slots=True)
class LakeEntry:
    """What a listing shows of a file in the lake."""

    size_bytes: int
    etag: str


def decide(
    size_bytes: int,
    source_version: str,
    ledger: LedgerEntry | None,
    lake: LakeEntry | None,
    *,
    lake_known: bool,
    existing: Existing,
) -> Action:
    """Choose the action for one item.

    Args:
        size_bytes: The source item's size.
        source_version: The source item's version, opaque.
        ledger: This job's memory of the item, if it has any.
        lake: The file at the target path, if the listing shows one.
        lake_known: Whether the lake was listed. If not (incremental runs), the ledger alone speaks.
        existing: The job's policy for files that are there already.

    Returns:
        ``create``: nothing is there; write in place, on the condition that it stays so.
        ``replace``: stage beside it and rename over it.
        ``compare``: same size, but nobody knows the content: compare hashes, then skip or do as ``existing`` says.
        ``skip``: provably there already.
        ``fail``: something else is there, and the job forbids to touch it.
    """
    # The version alone: what SharePoint gives may be longer than what it lists, and its own size is in the version.
    known = ledger is not None and ledger.source_version == source_version
    if not lake_known:
        if known:
            return "skip"
        if ledger is None:
            return "create"
        return "compare" if existing == "fail" and not ledger.own else "replace"
    if lake is None:
        return "create"
    if existing == "overwrite":
        return "replace"
    if ledger is not None and not ledger.hash and existing != "fail":
        # The service may still show the hash of what was written, so comparing would not find the damage.
        return "replace"
    untouched = ledger is not None and lake.size_bytes == ledger.size_bytes and lake.etag == ledger.etag
    if known and untouched:
        return "skip"
    if existing == "fail" and untouched and ledger is not None and ledger.own:
        # The job's own file, whose source has changed: not what `existing: fail` protects.
        return "replace"
    if lake.size_bytes == size_bytes:
        return "compare"
    return "fail" if existing == "fail" else "replace"
