"""One files migration as its activities see it: the job, its source, its target and its memory."""

from dataclasses import dataclass, field
from datetime import datetime

from shared.engine.catalog import Catalog
from shared.engine.run_records import RunRecords
from shared.engine.sources import JoinedTree
from shared.model.job import FilesJob
from shared.policy.globs import Globs
from shared.ports import Clock, LakeStore


@dataclass
class FilesRun:
    """Everything that stays the same while one run goes on; ``pair`` names source and target for the ledger.

    ``source_identity`` is that of the moment when the run was prepared at ``prepared_at``; ``identities`` are those of
    the single sources.
    """

    job: FilesJob
    records: RunRecords
    source: JoinedTree
    lake: LakeStore
    clock: Clock
    pair: str
    source_identity: str | None = None
    identities: tuple[str, ...] = ()
    prepared_at: datetime | None = None
    include: Globs = field(init=False)
    exclude: Globs = field(init=False)
    ledger: Catalog | None = None
    survey: Catalog | None = None
    surveys_after: dict[str, Catalog] = field(default_factory=dict)
    """What listings after the transfer showed, by the survey's name."""

    def __post_init__(self) -> None:
        self.include = Globs(self.job.include)
        self.exclude = Globs(self.job.exclude)

    def wanted(self, path: str) -> bool:
        """Whether the job's filters let this path through."""
        relative = self.source.relative(path)
        return (not self.include or self.include.match(relative)) and not self.exclude.match(relative)

    def target(self, path: str) -> str:
        """The item's path in the lakehouse, for reports."""
        return f"{self.job.target.path}/{path}"

    def now(self) -> str:
        return self.clock().strftime("%Y-%m-%dT%H:%M:%SZ")
