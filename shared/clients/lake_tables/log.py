"""A Delta table's log through delta-rs: what is there, and commits. Blocking; call it in threads.

How OneLake is reached: by its Blob endpoint with GUIDs, a bearer token for each operation, and an own CA (of an
emulator) by ``SSL_CERT_FILE``, the only way that delta-rs has. Deleting expired log files is off: delta-rs does it in
batches, which OneLake refuses (delta-io/delta-rs issue 4401); Fabric's own maintenance of tables does it.
"""

import atexit
import functools
import json
import os
import re
import ssl
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Schema, TableFeatures, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, DeltaProtocolError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from shared.clients.lake_tables.arrow import as_nullable
from shared.clients.onelake.classify import classify
from shared.errors import ConnectionLost, MigrationError, NotFound, ServiceUnavailable, TargetConflict, Unsupported
from shared.ports.tables import Committed, PartFile

# From these versions of reader and writer on, features are told one by one; writer 2 is append-only and invariants.
_BY_FEATURES = (3, 7)
_FEATURES = {"appendOnly", "invariants", "timestampNtz"}
RETRIES = 3
_AFTER_COMMIT = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)
_CONFIGURATION = {"delta.checkpointInterval": "10"}
_METADATA = "migration"
_STATUS = re.compile(r"\b(4\d\d|5\d\d) [A-Z][A-Za-z]+")
# Of a line that says where in delta-rs, not what.
_STACK = re.compile(r"\s*\d+: |\s+at |\s*$")
_SILENCE = re.compile(r"error sending request|connection|timed out|error decoding response|incomplete", re.IGNORECASE)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file of the table. ``low``, ``high`` and ``nulls`` are of the columns of which the log tells."""

    path: str
    rows: int | None
    size_bytes: int
    low: Mapping[str, Any]
    high: Mapping[str, Any]
    nulls: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a table."""

    version: int
    schema: pa.Schema
    files: tuple[DataFile, ...]
    applied: int
    append_only: bool
    has_ntz: bool
    problem: str
    table: DeltaTable

    def assert_writable(self, *, rewrites: bool) -> None:
        """Raises Unsupported, code ``table_features``."""
        self.assert_readable()
        if rewrites and self.append_only:
            raise self._unsupported("takes nothing but new rows (delta.appendOnly)")

    def assert_readable(self) -> None:
        """Raises Unsupported, code ``table_features``, where the data files alone are not the table."""
        if self.problem:
            raise self._unsupported(self.problem)

    def _unsupported(self, problem: str) -> Unsupported:
        return Unsupported(
            f"the Delta table in the lake {problem}; take that away from it, or name another table",
            code="table_features",
            subject=self.table.table_uri.rstrip("/").rpartition("/")[2],
        )


@dataclass(frozen=True, slots=True)
class Stamp:
    """What says in the log whose commit it is."""

    owner: str
    number: int
    run: str
    token: str
    position: Mapping[str, object]

    def properties(self, outcome: Committed) -> CommitProperties:
        counts = [outcome.inserted, outcome.updated, outcome.deleted]
        said = json.dumps(
            {
                "job": self.owner, "number": self.number, "run": self.run, "token": self.token, "rows": counts,
                "position": dict(self.position),
            }
        )  # fmt: skip
        return CommitProperties(
            custom_metadata={_METADATA: said},
            max_commit_retries=0,
            app_transactions=[Transaction(self.owner, self.number)],
        )


def storage_options(blob_url: str, token: str, ca_bundle: str | None) -> dict[str, str]:
    if ca_bundle and blob_url.startswith("https:"):
        _trust(ca_bundle)
    options = {
        "azure_storage_account_name": "onelake",
        "azure_storage_endpoint": blob_url,
        "bearer_token": token,
        # A little, since it does not heed Retry-After; what fails then has the transport's attempts.
        "max_retries": str(RETRIES),
        "retry_timeout": "20s",
        "backoff_config.init_backoff": "50ms",
        "backoff_config.max_backoff": "1s",
        "timeout": "120s",
    }
    if blob_url.startswith("http:"):
        options["allow_http"] = "true"
    return options


@functools.cache
def _trust(ca_bundle: str) -> None:
    """Add an authority to those of ``SSL_CERT_FILE``, which others in this process (ODBC drivers) go by as well."""
    known = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    with tempfile.NamedTemporaryFile("wb", prefix="authorities-", suffix=".pem", delete=False) as combined:
        for file in (known, ca_bundle):
            if file and Path(file).is_file():
                combined.write(Path(file).read_bytes() + b"\n")
    atexit.register(Path(combined.name).unlink, missing_ok=True)
    os.environ["SSL_CERT_FILE"] = combined.name


def load(uri: str, options: dict[str, str], owner: str) -> Snapshot | None:
    """The newest version, or None where there is no table."""
    try:
        table = DeltaTable(uri, storage_options=options)
    except TableNotFoundError:
        return None
    applied = table.transaction_version(owner)
    schema = pa.schema(table.schema().to_arrow())
    configuration = table.metadata().configuration
    files = _files(table)
    return Snapshot(
        version=table.version(),
        schema=schema,
        files=files,
        applied=-1 if applied is None else applied,
        append_only=configuration.get("delta.appendOnly", "").lower() == "true",
        has_ntz="timestampNtz" in (table.protocol().writer_features or ()),
        problem=_problem(table, files),
        table=table,
    )


def _files(table: DeltaTable) -> tuple[DataFile, ...]:
    found = pa.table(table.get_add_actions())

    def bounds(name: str) -> list[dict[str, Any]]:
        if name not in found.column_names:
            return [{}] * found.num_rows
        return [{k: v for k, v in (one or {}).items() if v is not None} for one in found[name].to_pylist()]

    return tuple(
        DataFile(*one)
        for one in zip(
            found["path"].to_pylist(),
            found["num_records"].to_pylist(),
            found["size_bytes"].to_pylist(),
            bounds("min"),
            bounds("max"),
            bounds("null_count"),
            strict=True,
        )
    )


def _problem(table: DeltaTable, files: Sequence[DataFile]) -> str:
    """Why this app must not write to the table, to follow on "the Delta table in the lake"; empty if it may."""
    protocol = table.protocol()
    features = {*(protocol.reader_features or ()), *(protocol.writer_features or ())}
    if strange := sorted(features - _FEATURES):
        return f"has features that this app does not know ({', '.join(strange)})"
    reader, writer = protocol.min_reader_version, protocol.min_writer_version
    if reader not in (1, _BY_FEATURES[0]) or (writer > 2 and writer != _BY_FEATURES[1]):
        return f"is of protocol version {reader}, {writer}, which this app does not know"
    metadata = table.metadata()
    if metadata.partition_columns:
        return f"is partitioned by {', '.join(metadata.partition_columns)}, which this app does not know"
    if metadata.configuration.get("delta.columnMapping.mode", "none") != "none":
        return "maps its columns' names (delta.columnMapping.mode), which this app does not know"
    if "delta.invariants" in table.schema().to_json():
        return "has invariants of columns, which this app does not check"
    if any("://" in file.path for file in files):
        return "refers to files of another table (a shallow clone), which this app does not follow"
    return ""


def said(table: DeltaTable, owner: str, number: int) -> Mapping[str, Any]:
    """What the job's commit of this number has put down beside the files; empty where the log has it no longer."""
    limit: int | None = 10
    while True:
        commits = table.history(limit)
        for commit in commits:
            try:
                found = json.loads(commit.get(_METADATA, "null"))
            except (ValueError, TypeError):
                continue
            if isinstance(found, dict) and found.get("job") == owner and found.get("number") == number:
                return found
        if limit is None or len(commits) < limit:
            return {}
        limit = limit * 10 if limit < 1000 else None


def create(
    uri: str, options: dict[str, str], schema: pa.Schema, parts: Sequence[PartFile], properties: CommitProperties
) -> None:
    """A new table with these files, in one commit. Raises TargetConflict if there is one by now."""
    create_table_with_add_actions(
        uri,
        Schema.from_arrow(schema),
        _adds(parts),
        mode="error",
        configuration=_CONFIGURATION,
        storage_options=options,
        commit_properties=properties,
        post_commithook_properties=_AFTER_COMMIT,
    )


def change(
    snapshot: Snapshot,
    schema: pa.Schema,
    parts: Sequence[PartFile],
    removed: Sequence[DataFile],
    properties: CommitProperties,
) -> None:
    """Add files and remove others, in one commit on top of this very version."""
    now_ms = int(time.time() * 1000)
    actions: list[AddAction | RemoveAction] = list(_adds(parts))
    actions += [RemoveAction(one.path, True, now_ms, one.size_bytes, {}) for one in removed]
    _commit(snapshot, actions, "append", schema, properties)


def overwrite(snapshot: Snapshot, schema: pa.Schema, parts: Sequence[PartFile], properties: CommitProperties) -> None:
    """These files in place of all, under this schema, in one commit on top of this very version."""
    _commit(snapshot, list(_adds(parts)), "overwrite", schema, properties)


def _commit(
    snapshot: Snapshot,
    actions: list[AddAction | RemoveAction],
    mode: str,
    schema: pa.Schema,
    properties: CommitProperties,
) -> None:
    snapshot.table.create_write_transaction(
        actions,
        mode,
        Schema.from_arrow(schema),
        commit_properties=properties,
        post_commithook_properties=_AFTER_COMMIT,
    )


def widen_protocol(snapshot: Snapshot) -> None:
    """Let the table have timestamps without a zone, in a commit of its own."""
    snapshot.table.alter.add_feature(
        TableFeatures.TimestampWithoutTimezone,
        allow_protocol_versions_increase=True,
        commit_properties=CommitProperties(max_commit_retries=0),
        post_commithook_properties=_AFTER_COMMIT,
    )


def add_columns(snapshot: Snapshot, fields: Sequence[pa.Field]) -> None:
    """New columns, null in all rows, in a commit of its own."""
    snapshot.table.alter.add_columns(
        Schema.from_arrow(as_nullable(pa.schema(fields))).fields,
        commit_properties=CommitProperties(max_commit_retries=0),
        post_commithook_properties=_AFTER_COMMIT,
    )


def let_be_null(snapshot: Snapshot, column: str) -> None:
    """Take NOT NULL from a column, in a commit of its own."""
    snapshot.table.alter.drop_column_not_null(
        column,
        commit_properties=CommitProperties(max_commit_retries=0),
        post_commithook_properties=_AFTER_COMMIT,
    )


def _adds(parts: Sequence[PartFile]) -> list[AddAction]:
    now_ms = int(time.time() * 1000)
    return [
        AddAction(
            path=part.path,
            size=part.size_bytes,
            partition_values={},
            modification_time=now_ms,
            data_change=True,
            stats=part.stats,
        )
        for part in parts
    ]


def meant_by(error: Exception, subject: str) -> MigrationError | None:
    """What delta-rs's error means; None if it is no error of the lake or the table."""
    if isinstance(error, TableNotFoundError):
        return NotFound("there is no Delta table", subject=subject)
    text = _COLOURS.sub("", str(error))
    if found := _STATUS.search(text):
        status = int(found[1])
        if status != 409 or not isinstance(error, CommitFailedError):
            body = text[max(0, text.find("<?xml")) :].encode()
            return classify(status, {}, body, subject)
    if isinstance(error, CommitFailedError):
        return TargetConflict("somebody else changed the Delta table meanwhile", code="target_changed", subject=subject)
    if isinstance(error, DeltaProtocolError):
        return Unsupported(
            f"the Delta table cannot be written ({_in_short(text)})", code="table_features", subject=subject
        )
    if isinstance(error, OSError | DeltaError):
        if _SILENCE.search(text):
            return ConnectionLost("the lake did not answer", subject=subject)
        if "already exists" in text:
            return TargetConflict("the Delta table is there already", code="target_changed", subject=subject)
        if isinstance(error, OSError):
            return ServiceUnavailable(f"an answer of the lake makes no sense ({_in_short(text)})", subject=subject)
        return Unsupported(
            f"the Delta table cannot be read ({_in_short(text)}); bring its _delta_log back, or delete the folder: the "
            "next run then reads the table anew",
            code="table_unreadable",
            subject=subject,
        )
    return None


def _in_short(text: str) -> str:
    """The last and so most particular thing that a chain of causes says; it holds no token."""
    lines = [line for line in text.strip().splitlines() if not _STACK.match(line)] or [""]
    line = lines[-1].strip(" \u21b3")
    return line if len(line) <= 200 else f"{line[:197]}..."
