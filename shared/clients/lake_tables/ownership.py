"""Whose the files and commits of a table are: several jobs may write to one, and several runs of a job."""

import hashlib

from shared.errors import TargetConflict


def owner_mark(owner: str) -> str:
    """A job's name as part of the names of its files."""
    return hashlib.sha256(owner.encode()).hexdigest()[:8]


def overtaken(table: str) -> TargetConflict:
    """A commit has the number of this one and belongs to another plan: of another run, or an earlier round."""
    return TargetConflict(
        "another run of this job has written to the table meanwhile, so that what was read here no longer follows on "
        "what is there; nothing was changed, and the next run goes on from what the lake has",
        code="overtaken",
        subject=table,
    )


def taken_meanwhile(table: str) -> TargetConflict:
    """Somebody else has made the table since the commit was planned for one that was not there."""
    return TargetConflict(
        "another job has written the table while this one read; name the table in reset to replace it, or choose "
        "another name or path",
        code="target_exists",
        subject=table,
    )
