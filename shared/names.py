"""The wire vocabulary: names of functions, ids of instances, names of events.

They are written into orchestration histories, so a name that has once been released is never reused for
something else.
"""

from typing import Final

# Orchestrators
MIGRATE_FILES: Final = "migrate_files"
TRANSFER_PAGE: Final = "transfer_page"
MIGRATE_MLTABLES: Final = "migrate_mltables"
MIGRATE_ASSET: Final = "migrate_asset"
MIGRATE_SQL: Final = "migrate_sql"
MIGRATE_TABLE: Final = "migrate_table"

# Activities
PREPARE_RUN: Final = "prepare_run"
INDEX_SOURCE: Final = "index_source"
SURVEY_TARGET: Final = "survey_target"
PLAN_PAGE: Final = "plan_page"
TRANSFER_BATCH: Final = "transfer_batch"
VERIFY_PAGE: Final = "verify_page"
COMMIT_LEDGER: Final = "commit_ledger"
WRITE_MANIFEST: Final = "write_manifest"
PREPARE_MLTABLES: Final = "prepare_mltables"
DISCOVER_ASSETS: Final = "discover_assets"
PLAN_ASSET_VERSION: Final = "plan_asset_version"
COPY_ASSET_FILES: Final = "copy_asset_files"
CHECK_ASSET_FILES: Final = "check_asset_files"
REGISTER_ASSET_VERSION: Final = "register_asset_version"
VALIDATE_ASSET_VERSION: Final = "validate_asset_version"
FAIL_ASSET_VERSION: Final = "fail_asset_version"
WRITE_ASSET_REPORTS: Final = "write_asset_reports"
PREPARE_SQL: Final = "prepare_sql"
PLAN_TABLE: Final = "plan_table"
EXTRACT_SLICE: Final = "extract_slice"
EXTRACT_TABLE: Final = "extract_table"
COMMIT_TABLE: Final = "commit_table"
FAIL_TABLE: Final = "fail_table"
WRITE_SQL_REPORTS: Final = "write_sql_reports"

# HTTP and timer triggers
START_MIGRATION: Final = "start_migration"
LIST_MIGRATIONS: Final = "list_migrations"
GET_MIGRATION: Final = "get_migration"
CONTROL_MIGRATION: Final = "control_migration"
PURGE_MIGRATION: Final = "purge_migration"
GET_MANIFEST: Final = "get_manifest"
LIST_ITEMS: Final = "list_items"
LIST_SCHEDULES: Final = "list_schedules"
PUT_SCHEDULE: Final = "put_schedule"
DELETE_SCHEDULE: Final = "delete_schedule"
RUN_SCHEDULE: Final = "run_schedule"
HEALTH: Final = "health"
OPENAPI: Final = "openapi"
START_DUE_SCHEDULES: Final = "start_due_schedules"

# External events
CANCEL_EVENT: Final = "cancel"

ORCHESTRATOR_OF_KIND: Final = {"files": MIGRATE_FILES, "mltable": MIGRATE_MLTABLES, "sql": MIGRATE_SQL}


def run_id(kind: str, job: str, slot: str) -> str:
    """The instance id of a run: ``files-invoices-20261121T020000Z``."""
    return f"{kind}-{job}-{slot}"


def page_name(number: int, round_number: int) -> str:
    """The name of a page of the plan: ``p00001``, and ``r2p00001`` where failed items are planned again."""
    return f"p{number:05d}" if round_number == 1 else f"r{round_number}p{number:05d}"


def page_instance_id(run: str, page: str, attempt: int) -> str:
    """The instance id of the sub-orchestration that transfers one page, the n-th time."""
    return f"{run}-{page}-a{attempt}"
