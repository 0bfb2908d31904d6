"""Job specs as callers write them (``POST /api/migrations``, ``PUT /api/schedules/{name}``).

Everything here is validated from the text alone. What needs the machine or the lake (does the folder exist, is the
target a file) is asked by the starter before anything is started.
"""

import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from shared.errors import Configuration
from shared.model.lake_target import LakeTarget
from shared.model.mltable_job import MltableJob
from shared.model.spec import ByteSize, CredentialName, JobName, Spec
from shared.model.sql_job import SqlJob
from shared.policy.account_url import check_container_name
from shared.policy.globs import Globs
from shared.policy.ncrontab import parse as parse_ncrontab
from shared.policy.paths import sort_key, unmappable_reason
from shared.policy.quantities import parse_bytes_per_s

MAX_SPEC_BYTES = 1024 * 1024

_GUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _bytes_per_s(value: Any) -> Any:
    return parse_bytes_per_s(value) if isinstance(value, str) else value


def _glob(pattern: str) -> str:
    Globs([pattern])
    return pattern


Glob = Annotated[str, AfterValidator(_glob)]
BytesPerSecond = Annotated[int, BeforeValidator(_bytes_per_s, json_schema_input_type=int | str)]


class FolderSource(Spec):
    """A folder on a disk or share that the worker sees, under one of FOLDER_SOURCE_ROOTS."""

    type: Literal["folder"]
    path: str = Field(min_length=1)

    @field_validator("path")
    @classmethod
    def _plain(cls, value: str) -> str:
        if "\x00" in value:
            raise ValueError("must not contain a NUL character")
        if ".." in value.replace("\\", "/").split("/"):
            raise ValueError("must not contain '..'; write the folder's own path")
        return value


class SharePointSource(Spec):
    """A document library of a SharePoint site, or a folder of it, through Microsoft Graph."""

    type: Literal["sharepoint"]
    site: str = Field(
        min_length=1, max_length=1024, description="contoso.sharepoint.com:/sites/finance, or its address"
    )
    library: str = Field(min_length=1, max_length=1024, description="the library's name, or its address")
    folder: str = Field("", description="a folder below the library; empty for all of it")
    credential: CredentialName = "sharepoint"

    @field_validator("site", "library", "folder")
    @classmethod
    def _plain(cls, value: str) -> str:
        if any(ord(character) < 0x20 for character in value):
            raise ValueError("must not contain control characters")
        return value.strip()

    @field_validator("folder")
    @classmethod
    def _below(cls, value: str) -> str:
        folder = value.strip("/")
        if folder and any(part in ("", ".", "..") for part in folder.split("/")):
            raise ValueError("must be a path below the library, such as 2024/Q1")
        return folder


class BlobSource(Spec):
    """A container of a storage account, or what lies below a prefix of it."""

    type: Literal["blob"]
    account_url: str = Field(min_length=1, description="https://account.blob.core.windows.net")
    container: str = Field(min_length=1, max_length=63)
    prefix: str = Field("", max_length=1024, description="a folder of names; empty for the whole container")
    credential: CredentialName = "source"

    @field_validator("container")
    @classmethod
    def _named(cls, value: str) -> str:
        try:
            return check_container_name(value)
        except Configuration as error:
            raise ValueError(error.detail) from None


SOURCE_TYPES = ("folder", "sharepoint", "blob")
Source = Annotated[FolderSource | SharePointSource | BlobSource, Field(discriminator="type")]


def _sub_path(value: str) -> str:
    trimmed = value.strip("/")
    reason = unmappable_reason(trimmed) if trimmed else "is empty"
    if reason:
        raise ValueError(f"must be a folder below target.path: it {reason}")
    return trimmed


SubPath = Annotated[str, Field(max_length=512, description="a folder below target.path"), AfterValidator(_sub_path)]


class FolderSourceAt(FolderSource):
    target_path: SubPath


class SharePointSourceAt(SharePointSource):
    target_path: SubPath


class BlobSourceAt(BlobSource):
    target_path: SubPath


SourceAt = Annotated[FolderSourceAt | SharePointSourceAt | BlobSourceAt, Field(discriminator="type")]
"""One of several sources of a job, with its own folder of the target."""


class Limits(Spec):
    """How much at once."""

    batch_items: int = Field(100, ge=1, le=1000, description="items one activity moves")
    batch_bytes: ByteSize = Field(256 * 1024 * 1024, ge=1024 * 1024, description="bytes one activity moves")
    parallel_batches: int = Field(16, ge=1, le=256)
    concurrency: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        "auto", description="uploads in flight of one worker"
    )
    bandwidth: BytesPerSecond | None = Field(None, ge=1024, description="cap of one worker, such as 50MiB/s")
    server_side_copy: bool = Field(
        True, description="let OneLake read blobs by itself where both sides allow it, without this worker in between"
    )
    upload_sequence: Literal["auto", "three_step", "put_blob"] = Field(
        "auto",
        description="auto: append and flush in one call where the service takes it; put_blob: small files in one",
    )


class FilesJob(Spec):
    """Files from a source tree into a folder of a lakehouse."""

    kind: Literal["files"]
    name: JobName
    # Before source, whose check looks at both.
    sources: list[SourceAt] = Field(default_factory=list, max_length=100, description="in place of source: several")
    source: Source | None = Field(None, validate_default=True)
    include: list[Glob] = Field(default_factory=list, max_length=100)
    exclude: list[Glob] = Field(default_factory=list, max_length=100)
    target: LakeTarget
    mode: Literal["full", "incremental"] = "full"
    existing: Literal["skip_identical", "overwrite", "fail"] = "skip_identical"
    deleted: Literal["keep", "mirror"] = "keep"
    sharepoint_rewrites: Literal["accept_recorded", "fail"] = Field(
        "accept_recorded",
        description="documents that SharePoint gives with other bytes than it announces: take them and say so, or fail",
    )
    verify: Literal["none", "listing", "sample", "all"] = "sample"
    limits: Limits = Limits()  # type: ignore[call-arg]
    dry_run: bool = False
    schedule: str | None = Field(None, description="six-field NCRONTAB; only for PUT /schedules/{name}")

    @field_validator("schedule")
    @classmethod
    def _schedule(cls, value: str | None) -> str | None:
        if value is not None:
            parse_ncrontab(value)
        return value

    @field_validator("deleted")
    @classmethod
    def _deleted(cls, value: str, info: Any) -> str:
        if value == "mirror" and info.data.get("mode") != "incremental":
            raise ValueError("mirror needs mode: incremental, since only the ledger knows what the source has lost")
        return value

    @field_validator("source")
    @classmethod
    def _one_or_several(cls, value: Any, info: Any) -> Any:
        given = info.data.get("sources")
        if value is None and given == []:
            raise ValueError("missing; give source, or sources for several")
        if value is not None and given:
            raise ValueError("give either source or sources, not both")
        return value

    @field_validator("sources")
    @classmethod
    def _apart(cls, value: list[Any]) -> list[Any]:
        subs = sorted((source.target_path for source in value), key=sort_key)
        for sub, following in pairwise(subs):
            if f"{following}/".startswith(f"{sub}/"):
                raise ValueError(f"the target_path {following!r} lies in {sub!r}; give each source a folder of its own")
        return value

    def places(self) -> list[tuple[FolderSource | SharePointSource | BlobSource, str]]:
        """Every source with its folder below the target's (empty for a job's only one), in the order of the plan."""
        if self.source is not None:
            return [(self.source, "")]
        return sorted(((source, source.target_path) for source in self.sources), key=lambda place: sort_key(place[1]))

    def field_of(self, number: int) -> str:
        """What the source with this number (in the order of :meth:`places`) is called in the spec."""
        if self.source is not None:
            return "source"
        return f"sources[{self.sources.index(self.places()[number][0])}]"  # type: ignore[arg-type]


Job = FilesJob | MltableJob | SqlJob
KINDS = ("files", "mltable", "sql")

_JOB: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])


class SpecError(ValueError):
    """A spec that cannot be run. ``details`` names each field and what to change."""

    def __init__(self, message: str, details: list[dict[str, str]], *, code: str = "invalid_spec") -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.code = code


def parse_job(document: Any) -> Job:
    """Turn a decoded JSON or YAML document into a job.

    Raises:
        SpecError: with one detail for every field at fault.
    """
    if not isinstance(document, dict):
        raise SpecError("the job spec must be an object", [{"path": "", "message": "expected an object"}])
    kind = document.get("kind")
    if kind not in KINDS:
        message = (
            f"unknown kind {_shown(kind)}; one of: {', '.join(KINDS)}"
            if "kind" in document
            else (f"missing; one of: {', '.join(KINDS)}")
        )
        raise SpecError(f"kind: {message}", [{"path": "kind", "message": message}])
    try:
        return _JOB.validate_python(document)
    except ValidationError as error:
        details = [{"path": _path(e), "message": _message(e)} for e in error.errors(include_url=False)[:50]]
        raise SpecError(": ".join(part for part in details[0].values() if part), details) from None


def parse_files_job(document: Any) -> FilesJob:
    """The same for what can only be one of files. Raises SpecError."""
    job = parse_job(document)
    if not isinstance(job, FilesJob):
        raise TypeError(f"a job of kind {job.kind} where one of files belongs")
    return job


def is_guid(text: str) -> bool:
    """Whether a workspace or lakehouse is given by its GUID, so that no name has to be resolved."""
    return _GUID.fullmatch(text) is not None


def _path(error: Any) -> str:
    path, before = "", ""
    # The first part is the branch of the union that the kind chose.
    for depth, part in enumerate(error["loc"][1:]):
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in SOURCE_TYPES and before in ("source", "sources"):
            # The branch of a union that pydantic chose by the type; that is no field.
            before = ""
            continue
        elif not depth or not (part == "int" or part.startswith(("function-", "constrained-", "literal[", "tagged-"))):
            path += f".{part}" if path else part
        before = part if isinstance(part, str) else before
    return f"{path}.type" if error["type"].startswith("union_tag_") else path


def _message(error: Any) -> str:
    if error["type"] == "union_tag_not_found":
        return f"missing; one of: {', '.join(SOURCE_TYPES)}"
    if error["type"] == "union_tag_invalid":
        return f"unknown type {_shown(error['ctx']['tag'])}; one of: {', '.join(SOURCE_TYPES)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if len(error["loc"]) <= 1:
        # Of the job as a whole: the caller has it.
        return message
    if error["type"] in ("missing", "extra_forbidden") or (message.startswith("missing") and error["input"] is None):
        return message
    return f"{message} (got {_shown(error['input'])})"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
