"""``kind: mltable``: MLTable data assets of one Azure ML workspace, to be copied and registered in another.

``config`` is the migration guide's ``migration_config.json`` as it stands. Where it names the two workspaces' own
``config.json`` by file, the command line puts their content in place, since the API does not see the caller's disk.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from shared.model.spec import ByteSize, CredentialName, JobName, Spec
from shared.policy.asset_uri import WorkspaceName, normal_path
from shared.policy.asset_versions import check_suffix_pattern, check_version_wish, is_glob
from shared.policy.globs import Globs
from shared.policy.ncrontab import parse as parse_ncrontab

_ASSET_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}")
_FOLDER = re.compile(r"[A-Za-z0-9 _.=+-]+(/[A-Za-z0-9 _.=+-]+)*")
_BATCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

Severity = Literal["fail", "warn"]
Policy = Literal["suffix", "skip", "fail"]


def _folder(value: str) -> str:
    trimmed = value.strip("/")
    if not _FOLDER.fullmatch(trimmed) or any(set(part) <= {"."} or part.endswith(".") for part in trimmed.split("/")):
        raise ValueError("must be a folder such as migrated/2026: letters, digits, spaces and _ - . = +, no '..'")
    return normal_path(trimmed)


def _wish(value: Any) -> Any:
    # YAML reads a bare 9 as a number, and versions are text.
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return check_version_wish(value) if isinstance(value, str) else value


def _suffix(value: str) -> str:
    return check_suffix_pattern(value)


Folder = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_folder)]
Wish = Annotated[str, BeforeValidator(_wish, json_schema_input_type=int | str)]
SuffixPattern = Annotated[str, Field(max_length=60), AfterValidator(_suffix)]


class WorkspaceConfig(Spec):
    """A workspace's ``config.json`` as Azure ML's studio gives it, with the tenant and the credential added."""

    subscription_id: str = Field(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")
    resource_group: str = Field(pattern=r"^[\w.()-]{1,90}$")
    workspace_name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_-]{2,32}$")
    tenant_id: str | None = Field(
        None, pattern=r"^[0-9a-fA-F-]{36}$", description="checked against, or given to, the credential"
    )
    credential: CredentialName | None = Field(None, description="default azureml_source or azureml_target")

    @property
    def workspace(self) -> WorkspaceName:
        return WorkspaceName(self.subscription_id, self.resource_group, self.workspace_name)


def _no_file(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(  # noqa: TRY004 - pydantic makes a refusal of a ValueError alone
            "names a file, which the API cannot see; give the content of that config.json in its place "
            "(python -m tools.migrate_mltables does so by itself)"
        )
    return value


WorkspaceField = Annotated[WorkspaceConfig, BeforeValidator(_no_file)]


class Checks(Spec):
    """What a check that fails does to the version."""

    file_count: Severity = "fail"
    total_bytes: Severity = "fail"
    hash_sample: Severity = "fail"
    load: Severity = "fail"
    comparison: Severity = Field("fail", description="schema, rows and values of source and target, as loaded")


class Validation(Spec):
    """The load test."""

    enabled: bool = True
    head_rows: int = Field(5, ge=1, le=1000)
    count_rows: int = Field(1000, ge=1, le=1_000_000, description="rows of the sample that is counted and compared")
    require_rows: bool = Field(False, description="whether an empty table fails")
    timeout_s: int = Field(180, ge=1, le=3000)
    memory: ByteSize = Field(4 * 1024**3, ge=256 * 1024**2, description="address space of the process that loads")
    fetch: ByteSize = Field(256 * 1024**2, ge=1024, description="bytes of files fetched from each side at most")


class Options(Spec):
    """What holds for every asset, unless the asset says otherwise."""

    destination_prefix: Folder = "migrated"
    collision_policy: Policy = "suffix"
    collision_suffix_pattern: SuffixPattern = "{version}_m{n}"
    collision_max: int = Field(20, ge=1, le=1000)
    parallel_copies: int = Field(8, ge=1, le=256)
    hash_sample_files: int = Field(10, ge=0, le=100_000)
    server_side_copy: Literal["auto", "never"] = "auto"
    rollback_on_failure: bool = False
    outside_root: Literal["refuse", "carry"] = "refuse"
    other_datastore: Literal["refuse", "carry"] = "refuse"
    public_urls: Literal["keep", "refuse"] = "keep"
    checks: Checks = Checks()  # type: ignore[call-arg]
    validation: Validation = Validation()  # type: ignore[call-arg]


class Defaults(Options):
    """Of the whole batch."""

    dry_run: bool = False
    parallel_assets: int = Field(2, ge=1, le=16, description="assets at once; versions of one asset keep their order")


class AssetWish(Spec):
    """One entry of ``assets``; what stands here of the options overrides the defaults."""

    name: str = Field(min_length=1, max_length=255, description="an asset, or a glob over the source's MLTables")
    versions: list[Wish] = Field(min_length=1, max_length=10_000)
    destination_subpath: Folder | None = None
    destination_prefix: Folder | None = None
    collision_policy: Policy | None = None
    collision_suffix_pattern: SuffixPattern | None = None
    collision_max: int | None = Field(None, ge=1, le=1000)
    parallel_copies: int | None = Field(None, ge=1, le=256)
    hash_sample_files: int | None = Field(None, ge=0, le=100_000)
    server_side_copy: Literal["auto", "never"] | None = None
    rollback_on_failure: bool | None = None
    outside_root: Literal["refuse", "carry"] | None = None
    other_datastore: Literal["refuse", "carry"] | None = None
    public_urls: Literal["keep", "refuse"] | None = None
    checks: Checks | None = None
    validation: Validation | None = None

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if is_glob(value):
            Globs([value])
        elif not _ASSET_NAME.fullmatch(value):
            raise ValueError("is no name of a data asset: letters, digits, '_' and '-'; or a glob such as sales_*")
        return value

    @field_validator("destination_subpath")
    @classmethod
    def _one_folder(cls, value: str | None, info: Any) -> str | None:
        if value is not None and is_glob(str(info.data.get("name", ""))):
            raise ValueError("would be the same folder for several assets; leave it away where name is a glob")
        return value


class MigrationConfig(Spec):
    """The guide's configuration (section 5)."""

    migration_batch_id: str | None = Field(None, description="a run makes its own where there is none")
    source_workspace_config: WorkspaceField
    target_workspace_config: WorkspaceField
    defaults: Defaults = Defaults()  # type: ignore[call-arg]
    assets: list[AssetWish] = Field(min_length=1, max_length=10_000)

    @field_validator("migration_batch_id")
    @classmethod
    def _batch(cls, value: str | None) -> str | None:
        if value is not None and not _BATCH.fullmatch(value):
            raise ValueError("must have at most 64 letters, digits, '_', '-' and '.', or be left away")
        return value

    @field_validator("target_workspace_config")
    @classmethod
    def _another(cls, value: WorkspaceConfig, info: Any) -> WorkspaceConfig:
        source = info.data.get("source_workspace_config")
        if source is not None and source.workspace.is_same(value.workspace):
            raise ValueError("is the source's own workspace; name the one to copy into")
        return value

    @field_validator("assets")
    @classmethod
    def _complete(cls, value: list[AssetWish], info: Any) -> list[AssetWish]:
        """What an asset leaves out of ``checks`` and ``validation`` is that of the defaults."""
        defaults = info.data.get("defaults")

        def complete(asset: AssetWish) -> AssetWish:
            changes = {}
            for name in ("checks", "validation"):
                own = getattr(asset, name)
                if own is not None and defaults is not None:
                    given = {field: getattr(own, field) for field in own.model_fields_set}
                    changes[name] = getattr(defaults, name).model_copy(update=given)
            return asset.model_copy(update=changes)

        return [complete(asset) for asset in value]

    def options(self, spec: int) -> Options:
        """The options of one entry of ``assets``."""
        asset = self.assets[spec]
        given = {name: value for name in Options.model_fields if (value := getattr(asset, name)) is not None}
        merged = {name: getattr(self.defaults, name) for name in Options.model_fields} | given
        return Options.model_construct(**merged)


class MltableJob(Spec):
    """MLTable data assets from a workspace of one tenant into that of another."""

    kind: Literal["mltable"]
    name: JobName
    config: MigrationConfig
    schedule: str | None = Field(None, description="six-field NCRONTAB; only for PUT /schedules/{name}")

    @field_validator("schedule")
    @classmethod
    def _schedule(cls, value: str | None) -> str | None:
        if value is not None:
            parse_ncrontab(value)
        return value

    @property
    def source_credential(self) -> str:
        return self.config.source_workspace_config.credential or "azureml_source"

    @property
    def target_credential(self) -> str:
        return self.config.target_workspace_config.credential or "azureml_target"
