"""The SQLite file: instances, their history, and the queues between them.

One connection, used by one thread. Every method works inside the caller's transaction; `transaction` makes it all or
nothing, so that a kill at any instant leaves either the whole step or none of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from local.host.durable.events import EventType

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE instances (
    instance_id TEXT PRIMARY KEY,
    execution_id TEXT NOT NULL,
    name TEXT NOT NULL,
    output TEXT,
    custom_status TEXT,
    status TEXT NOT NULL,
    is_started INTEGER NOT NULL DEFAULT 0,
    is_rewound INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    version TEXT,
    parent_id TEXT,
    parent_execution_id TEXT,
    parent_task_id INTEGER,
    next_task_id INTEGER NOT NULL DEFAULT 0,
    waits TEXT NOT NULL DEFAULT '{}'
) WITHOUT ROWID;
CREATE TABLE inputs (
    instance_id TEXT PRIMARY KEY,
    input TEXT
) WITHOUT ROWID;
CREATE INDEX instances_by_age ON instances (created_at, instance_id);
CREATE INDEX instances_not_started ON instances (instance_id) WHERE is_started = 0;
CREATE TABLE history (
    instance_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    event_type INTEGER NOT NULL,
    event TEXT NOT NULL,
    PRIMARY KEY (instance_id, position)
) WITHOUT ROWID;
CREATE TABLE inbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    instance_id TEXT NOT NULL,
    kind INTEGER NOT NULL,
    task_id INTEGER,
    name TEXT,
    payload TEXT,
    details TEXT
);
CREATE INDEX inbox_by_instance ON inbox (instance_id, id);
CREATE TABLE activities (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    instance_id TEXT NOT NULL,
    execution_id TEXT NOT NULL,
    task_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    input TEXT
);
CREATE INDEX activities_by_instance ON activities (instance_id);
CREATE TABLE timers (
    instance_id TEXT NOT NULL,
    task_id INTEGER NOT NULL,
    fire_at TEXT NOT NULL,
    PRIMARY KEY (instance_id, task_id)
) WITHOUT ROWID;
CREATE INDEX timers_by_time ON timers (fire_at);
CREATE TABLE recorded_results (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    instance_id TEXT NOT NULL,
    task_kind TEXT NOT NULL,
    task_name TEXT NOT NULL,
    task_input TEXT,
    source TEXT NOT NULL,
    payload TEXT
);
CREATE INDEX recorded_results_by_instance ON recorded_results (instance_id, id);
CREATE TABLE schedules (
    function TEXT PRIMARY KEY,
    expression TEXT NOT NULL,
    last_at TEXT,
    next_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
) WITHOUT ROWID;
"""


class Status(StrEnum):
    """Runtime status of an instance, as the management API spells it."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    COMPLETED = "Completed"
    FAILED = "Failed"
    TERMINATED = "Terminated"

    @property
    def is_final(self) -> bool:
        return self in (Status.COMPLETED, Status.FAILED, Status.TERMINATED)


@dataclass(slots=True)
class Instance:
    """One row of the instances table; `input`, `output` and `custom_status` are JSON text.

    Attributes:
        execution_id: Changes with every generation and restart: what an older one scheduled no longer reports here.
        is_started: Whether its first episode has run.
        is_rewound: Whether results recorded before a rewind are to be used again.
        parent_task_id: The task of the parent that waits for it.
        waits: JSON text, event name to how many waits for it are open.
    """

    instance_id: str
    execution_id: str
    name: str
    input: str | None
    output: str | None
    custom_status: str | None
    status: Status
    is_started: bool
    is_rewound: bool
    created_at: str
    updated_at: str
    version: str | None
    parent_id: str | None
    parent_execution_id: str | None
    parent_task_id: int | None
    next_task_id: int = 0
    waits: str = "{}"


# The input stands in its own table: it can be megabytes, and the row beside it is rewritten in every episode.
_COLUMNS = tuple(name for name in Instance.__dataclass_fields__ if name != "input")
_SELECT_INSTANCE = f"SELECT {', '.join(_COLUMNS)}, input FROM instances LEFT JOIN inputs USING (instance_id)"  # noqa: S608
_SELECT_STATE = f"SELECT {', '.join(_COLUMNS)}, NULL FROM instances"  # noqa: S608
_REPLACE_INSTANCE = (
    f"INSERT OR REPLACE INTO instances ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
)


@dataclass(frozen=True, slots=True)
class Message:
    """Something for an instance to process in an episode of its own.

    Attributes:
        kind: The history event that it becomes.
        task_id: The task it completes; None for an external event.
        name: The external event's name.
        payload: Result or event data as JSON text, or the reason of a failure.
        details: More about a failure.
    """

    id: int
    kind: EventType
    task_id: int | None
    name: str | None
    payload: str | None
    details: str | None


@dataclass(frozen=True, slots=True)
class QueuedActivity:
    id: int
    instance_id: str
    execution_id: str
    task_id: int
    name: str
    input: str | None


@dataclass(frozen=True, slots=True)
class RecordedResult:
    """What an instance had before its rewind, to be used again for the same task.

    Attributes:
        source: ``result`` (payload is the result), ``activity`` (payload is the id of the queued activity) or
            ``child`` (payload is the instance id of the sub-orchestration).
    """

    id: int
    source: str
    payload: str | None


@dataclass(frozen=True, slots=True)
class ScheduleState:
    expression: str
    last_at: str | None
    next_at: str
    updated_at: str


class Store:
    """See the module's text.

    Raises:
        sqlite3.Error: From any method, when the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        # A committed transaction survives the end of this process in any case. NORMAL does not wait for the disk,
        # so after a power cut or a crash of the operating system the last seconds may be missing; the file is then
        # whole but earlier, and what they held (at least a start request) has to be asked for again.
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA busy_timeout = 5000")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            with self.transaction():
                for statement in _SCHEMA.split(";\n"):
                    if statement.strip():
                        self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        elif version != _SCHEMA_VERSION:
            self._db.close()
            raise sqlite3.DatabaseError(f"{path} has format {version} and this host writes format {_SCHEMA_VERSION}")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # Instances

    def get_instance(self, instance_id: str) -> Instance | None:
        row = self._db.execute(f"{_SELECT_INSTANCE} WHERE instance_id = ?", (instance_id,)).fetchone()
        return None if row is None else _instance_of(row)

    def get_instance_state(self, instance_id: str) -> Instance | None:
        """The instance without its input."""
        row = self._db.execute(f"{_SELECT_STATE} WHERE instance_id = ?", (instance_id,)).fetchone()
        return None if row is None else _instance_of(row)

    def put_instance(self, instance: Instance) -> None:
        """Write all of an instance, as when it is new."""
        self.update_instance(instance)
        self._db.execute("INSERT OR REPLACE INTO inputs VALUES (?, ?)", (instance.instance_id, instance.input))

    def update_instance(self, instance: Instance) -> None:
        """Write all but the input."""
        self._db.execute(_REPLACE_INSTANCE, [getattr(instance, column) for column in _COLUMNS])

    def find_instances(
        self,
        *,
        statuses: Sequence[str] = (),
        created_from: str | None = None,
        created_to: str | None = None,
        id_prefix: str | None = None,
        after: tuple[str, str] | None = None,
        limit: int | None = None,
    ) -> list[Instance]:
        """Instances in order of creation; `after` is the creation time and id where an earlier page ended."""
        conditions: list[str] = []
        values: list[str | int] = []
        if statuses:
            conditions.append(f"status IN ({', '.join('?' * len(statuses))})")
            values.extend(statuses)
        if created_from is not None:
            conditions.append("created_at >= ?")
            values.append(created_from)
        if created_to is not None:
            conditions.append("created_at <= ?")
            values.append(created_to)
        if id_prefix:
            conditions.append("substr(instance_id, 1, ?) = ?")
            values.extend((len(id_prefix), id_prefix))
        if after is not None:
            conditions.append("(created_at, instance_id) > (?, ?)")
            values.extend(after)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        query = f"{_SELECT_INSTANCE}{where} ORDER BY created_at, instance_id"
        if limit is not None:
            query += " LIMIT ?"
            values.append(limit)
        return [_instance_of(row) for row in self._db.execute(query, values)]

    def delete_instance(self, instance_id: str, *, keep_activities: bool = False) -> None:
        """Remove an instance with everything that belongs to it."""
        tables = ["instances", "inputs", "history", "inbox", "timers", "recorded_results"]
        for table in tables if keep_activities else [*tables, "activities"]:
            self._db.execute(f"DELETE FROM {table} WHERE instance_id = ?", (instance_id,))  # noqa: S608

    def runnable_instances(self) -> list[str]:
        """Ids of those that may have an episode to run."""
        rows = self._db.execute(
            "SELECT DISTINCT instance_id FROM inbox UNION SELECT instance_id FROM instances WHERE is_started = 0"
        )
        return [row[0] for row in rows]

    # History

    def append_history(self, instance_id: str, position: int, events: Iterable[tuple[EventType, str]]) -> None:
        self._db.executemany(
            "INSERT INTO history VALUES (?, ?, ?, ?)",
            [(instance_id, position + index, int(kind), text) for index, (kind, text) in enumerate(events)],
        )

    def get_history(self, instance_id: str) -> list[tuple[EventType, str]]:
        rows = self._db.execute(
            "SELECT event_type, event FROM history WHERE instance_id = ? ORDER BY position", (instance_id,)
        )
        return [(EventType(kind), text) for kind, text in rows]

    def count_history(self, instance_id: str) -> int:
        row = self._db.execute("SELECT max(position) FROM history WHERE instance_id = ?", (instance_id,)).fetchone()
        return 0 if row[0] is None else int(row[0]) + 1

    def clear_history(self, instance_id: str) -> None:
        self._db.execute("DELETE FROM history WHERE instance_id = ?", (instance_id,))

    # Inbox

    def put_message(
        self,
        instance_id: str,
        kind: EventType,
        *,
        task_id: int | None = None,
        name: str | None = None,
        payload: str | None = None,
        details: str | None = None,
    ) -> None:
        self._db.execute(
            "INSERT INTO inbox (instance_id, kind, task_id, name, payload, details) VALUES (?, ?, ?, ?, ?, ?)",
            (instance_id, int(kind), task_id, name, payload, details),
        )

    def next_message(self, instance_id: str, open_waits: Sequence[str]) -> Message | None:
        """The first message that the instance can process: an external event only when it waits for its name."""
        marks = ", ".join("?" * len(open_waits))
        row = self._db.execute(
            "SELECT id, kind, task_id, name, payload, details FROM inbox"  # noqa: S608
            f" WHERE instance_id = ? AND (name IS NULL OR name IN ({marks})) ORDER BY id LIMIT 1",
            (instance_id, *open_waits),
        ).fetchone()
        return None if row is None else Message(row[0], EventType(row[1]), *row[2:])

    def messages(self, instance_id: str) -> list[Message]:
        rows = self._db.execute(
            "SELECT id, kind, task_id, name, payload, details FROM inbox WHERE instance_id = ? ORDER BY id",
            (instance_id,),
        )
        return [Message(row[0], EventType(row[1]), *row[2:]) for row in rows]

    def delete_message(self, message_id: int) -> None:
        self._db.execute("DELETE FROM inbox WHERE id = ?", (message_id,))

    def delete_messages(self, instance_id: str, *, keep_events: bool = False) -> None:
        kept = " AND name IS NULL" if keep_events else ""
        self._db.execute(f"DELETE FROM inbox WHERE instance_id = ?{kept}", (instance_id,))  # noqa: S608

    # Activities

    def put_activity(self, instance: Instance, task_id: int, name: str, activity_input: str | None) -> None:
        self._db.execute(
            "INSERT INTO activities (instance_id, execution_id, task_id, name, input) VALUES (?, ?, ?, ?, ?)",
            (instance.instance_id, instance.execution_id, task_id, name, activity_input),
        )

    def activities_after(self, activity_id: int, limit: int) -> list[QueuedActivity]:
        rows = self._db.execute(
            "SELECT id, instance_id, execution_id, task_id, name, input FROM activities WHERE id > ?"
            " ORDER BY id LIMIT ?",
            (activity_id, limit),
        )
        return [QueuedActivity(*row) for row in rows]

    def activities_of(self, instance_id: str) -> list[QueuedActivity]:
        rows = self._db.execute(
            "SELECT id, instance_id, execution_id, task_id, name, input FROM activities WHERE instance_id = ?",
            (instance_id,),
        )
        return [QueuedActivity(*row) for row in rows]

    def get_activity(self, activity_id: int) -> QueuedActivity | None:
        row = self._db.execute(
            "SELECT id, instance_id, execution_id, task_id, name, input FROM activities WHERE id = ?", (activity_id,)
        ).fetchone()
        return None if row is None else QueuedActivity(*row)

    def adopt_activity(self, activity_id: int, instance: Instance, task_id: int) -> bool:
        """Let a queued activity report to another task; False when it has reported meanwhile."""
        cursor = self._db.execute(
            "UPDATE activities SET execution_id = ?, task_id = ? WHERE id = ?",
            (instance.execution_id, task_id, activity_id),
        )
        return cursor.rowcount == 1

    def delete_activity(self, activity_id: int) -> None:
        self._db.execute("DELETE FROM activities WHERE id = ?", (activity_id,))

    # Durable timers

    def put_timer(self, instance_id: str, task_id: int, fire_at: str) -> None:
        self._db.execute("INSERT INTO timers VALUES (?, ?, ?)", (instance_id, task_id, fire_at))

    def cancel_timer(self, instance_id: str, task_id: int) -> None:
        self._db.execute("DELETE FROM timers WHERE instance_id = ? AND task_id = ?", (instance_id, task_id))
        self._db.execute(
            "DELETE FROM inbox WHERE instance_id = ? AND task_id = ? AND kind = ?",
            (instance_id, task_id, int(EventType.TIMER_FIRED)),
        )

    def delete_timers(self, instance_id: str) -> None:
        self._db.execute("DELETE FROM timers WHERE instance_id = ?", (instance_id,))

    def next_timer(self) -> str | None:
        """When the earliest timer fires."""
        row = self._db.execute("SELECT min(fire_at) FROM timers").fetchone()
        return None if row is None else row[0]

    def take_due_timers(self, now: str) -> list[str]:
        """Move each due timer into its instance's inbox; returns the instances."""
        rows = self._db.execute(
            "SELECT instance_id, task_id, fire_at FROM timers WHERE fire_at <= ? ORDER BY fire_at LIMIT 1000", (now,)
        ).fetchall()
        for instance_id, task_id, fire_at in rows:
            self.put_message(instance_id, EventType.TIMER_FIRED, task_id=task_id, payload=fire_at)
            self._db.execute("DELETE FROM timers WHERE instance_id = ? AND task_id = ?", (instance_id, task_id))
        return [row[0] for row in rows]

    # Results kept over a rewind

    def put_recorded(
        self, instance_id: str, kind: str, name: str, task_input: str | None, result: RecordedResult
    ) -> None:
        self._db.execute(
            "INSERT INTO recorded_results (instance_id, task_kind, task_name, task_input, source, payload)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (instance_id, kind, name, task_input, result.source, result.payload),
        )

    def take_recorded(self, instance_id: str, kind: str, name: str, task_input: str | None) -> RecordedResult | None:
        """The earliest result recorded for such a task; it is used once."""
        row = self._db.execute(
            "SELECT id, source, payload FROM recorded_results WHERE instance_id = ? AND task_kind = ?"
            " AND task_name = ? AND task_input IS ? ORDER BY id LIMIT 1",
            (instance_id, kind, name, task_input),
        ).fetchone()
        if row is None:
            return None
        self._db.execute("DELETE FROM recorded_results WHERE id = ?", (row[0],))
        return RecordedResult(*row)

    def record_late_result(self, instance_id: str, activity_id: int, payload: str) -> None:
        """Keep the result of an activity that ended before the rewound instance asked for it again."""
        self._db.execute(
            "UPDATE recorded_results SET source = 'result', payload = ? WHERE instance_id = ? AND source = 'activity'"
            " AND payload = ?",
            (payload, instance_id, str(activity_id)),
        )

    def delete_recorded(self, instance_id: str) -> None:
        self._db.execute("DELETE FROM recorded_results WHERE instance_id = ?", (instance_id,))

    # Timer triggers

    def get_schedule(self, function: str) -> ScheduleState | None:
        row = self._db.execute(
            "SELECT expression, last_at, next_at, updated_at FROM schedules WHERE function = ?", (function,)
        ).fetchone()
        return None if row is None else ScheduleState(*row)

    def put_schedule(self, function: str, state: ScheduleState) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO schedules VALUES (?, ?, ?, ?, ?)",
            (function, state.expression, state.last_at, state.next_at, state.updated_at),
        )


def _instance_of(row: Sequence[object]) -> Instance:
    instance = Instance(**dict(zip(_COLUMNS, row, strict=False)), input=row[-1])  # type: ignore[arg-type]
    instance.status = Status(instance.status)
    instance.is_started = bool(instance.is_started)
    instance.is_rewound = bool(instance.is_rewound)
    return instance
