"""What can go wrong, and who acts on it.

MigrationError(code, detail, subject)
├── TransientError(retry_after_s)      try again later; the item is not at fault
│   ├── Throttled                      429, or the capacity's limit
│   ├── ServiceUnavailable             5xx, an answer that makes no sense
│   ├── ConnectionLost                 no answer, or half of one
│   └── SourceChanged                  the source item changed while it was read
├── ItemError                          this item only; the run goes on
│   ├── NotFound
│   ├── AccessDenied
│   ├── UnmappablePath                 a name that the lake cannot take
│   ├── IntegrityMismatch              what arrived is not what was sent
│   ├── TargetConflict                 the target is taken, or somebody changed it
│   └── Unsupported
└── RunError                           stop the run
    ├── Configuration
    ├── Authentication
    ├── DestinationMissing
    ├── SourceMissing
    ├── StoreUnavailable
    └── CapacityPaused

Only ``activities/boundary.py`` turns these into data. Anything else that is raised is a bug and propagates.
"""


class MigrationError(Exception):
    """A failure with a name that a report can carry.

    Attributes:
        code: Stable machine-readable name, ``snake_case``.
        detail: One sentence for a person, with the remedy where there is one. Never a secret.
        subject: What it is about: a path, a setting, a URL without its query.
    """

    default_code = "migration_error"

    def __init__(self, detail: str, *, code: str | None = None, subject: str = "") -> None:
        super().__init__(detail)
        self.code = code or self.default_code
        self.detail = detail
        self.subject = subject


class TransientError(MigrationError):
    """Worth another try; ``retry_after_s`` is what the service asked for, or None."""

    default_code = "transient"

    def __init__(
        self, detail: str, *, code: str | None = None, subject: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(detail, code=code, subject=subject)
        self.retry_after_s = retry_after_s


class Throttled(TransientError):
    default_code = "throttled"


class ServiceUnavailable(TransientError):
    default_code = "service_unavailable"


class ConnectionLost(TransientError):
    default_code = "connection_lost"


class SourceChanged(TransientError):
    default_code = "source_changed"


class ItemError(MigrationError):
    """Final for this item; the others go on."""

    default_code = "item_error"


class NotFound(ItemError):
    default_code = "not_found"


class AccessDenied(ItemError):
    default_code = "access_denied"


class UnmappablePath(ItemError):
    default_code = "unmappable_path"


class IntegrityMismatch(ItemError):
    default_code = "integrity_mismatch"


class TargetConflict(ItemError):
    default_code = "target_conflict"


class Unsupported(ItemError):
    default_code = "unsupported"


class RunError(MigrationError):
    """Final for the run: every further item would fail the same way."""

    default_code = "run_error"


class Configuration(RunError):
    default_code = "configuration"


class Authentication(RunError):
    default_code = "authentication"


class DestinationMissing(RunError):
    default_code = "destination_missing"


class SourceMissing(RunError):
    default_code = "source_missing"


class StoreUnavailable(RunError):
    default_code = "store_unavailable"


class CapacityPaused(RunError):
    default_code = "capacity_paused"


class JobBusy(Exception):
    """Another run of the job is alive; no failure of anything. ``run`` is its id."""

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self.run = run
