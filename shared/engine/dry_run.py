"""The report of a dry run: what its records say, with how long the move may take."""

from dataclasses import dataclass
from typing import Any

from shared.engine.run_records import RunRecords
from shared.policy.durations import Load, Measured, estimate
from shared.policy.paths import MAX_PATH_CHARACTERS, MAX_SEGMENTS
from shared.policy.precheck import Place, Precheck


@dataclass(frozen=True)
class DryRun:
    """What the report has to know beside the records.

    Attributes:
        places: The job's sources.
        changes_only: Whether a source showed only what has changed since the job's last run.
        units_per_minute: What a worker may spend of SharePoint's resource units, where a setting says so.
        bandwidth: Bytes a second of one worker, where the job says so.
        measured: What an earlier run was like.
    """

    places: tuple[Place, ...]
    changes_only: bool = False
    units_per_minute: int | None = None
    bandwidth: int | None = None
    measured: Measured | None = None

    async def report(self, check: Precheck, records: RunRecords, *, complete: bool) -> dict[str, Any]:
        """The report's JSON.

        Args:
            check: Has seen every record once.
            records: The run's, to be read once more where names may differ only in case.
            complete: Whether the run came to the end of its sources.
        """
        if check.wants_second_look:
            async for record in records.records():
                check.look_again(record)
        found = estimate(
            Load(*check.load()),
            sharepoint=Load(*check.load("sharepoint")),
            units_per_minute=self.units_per_minute,
            bandwidth=self.bandwidth,
            measured=self.measured,
        )
        # Workspace and item stand in front of every path and count.
        limits = {"path_characters": MAX_PATH_CHARACTERS, "path_segments": MAX_SEGMENTS - 3}
        return {
            "complete": complete, "changes_only": self.changes_only, **check.report(), "limits": limits,
            "estimate": found,
        }  # fmt: skip
