"""The steps of the workflows: one module each, a plain body ``run(services, request)``, registered in one line."""

import azure.durable_functions as df

from activities import (
    check_asset_files,
    commit_ledger,
    commit_table,
    copy_asset_files,
    discover_assets,
    extract_slice,
    extract_table,
    fail_asset_version,
    fail_table,
    index_source,
    plan_asset_version,
    plan_page,
    plan_table,
    prepare_mltables,
    prepare_run,
    prepare_sql,
    register_asset_version,
    survey_target,
    transfer_batch,
    validate_asset_version,
    verify_page,
    write_asset_reports,
    write_manifest,
    write_sql_reports,
)
from activities.boundary import Body, bound
from shared import names
from shared.services import Services

ACTIVITIES: dict[str, Body] = {
    names.PREPARE_RUN: prepare_run.run,
    names.INDEX_SOURCE: index_source.run,
    names.SURVEY_TARGET: survey_target.run,
    names.PLAN_PAGE: plan_page.run,
    names.TRANSFER_BATCH: transfer_batch.run,
    names.VERIFY_PAGE: verify_page.run,
    names.COMMIT_LEDGER: commit_ledger.run,
    names.WRITE_MANIFEST: write_manifest.run,
    names.PREPARE_MLTABLES: prepare_mltables.run,
    names.DISCOVER_ASSETS: discover_assets.run,
    names.PLAN_ASSET_VERSION: plan_asset_version.run,
    names.COPY_ASSET_FILES: copy_asset_files.run,
    names.CHECK_ASSET_FILES: check_asset_files.run,
    names.REGISTER_ASSET_VERSION: register_asset_version.run,
    names.VALIDATE_ASSET_VERSION: validate_asset_version.run,
    names.FAIL_ASSET_VERSION: fail_asset_version.run,
    names.WRITE_ASSET_REPORTS: write_asset_reports.run,
    names.PREPARE_SQL: prepare_sql.run,
    names.PLAN_TABLE: plan_table.run,
    names.EXTRACT_SLICE: extract_slice.run,
    names.EXTRACT_TABLE: extract_table.run,
    names.COMMIT_TABLE: commit_table.run,
    names.FAIL_TABLE: fail_table.run,
    names.WRITE_SQL_REPORTS: write_sql_reports.run,
}


def blueprint(services: Services) -> df.Blueprint:
    """All activities, registered under their wire names."""
    bp = df.Blueprint()
    for name, body in ACTIVITIES.items():
        bp.function_name(name)(bp.activity_trigger(input_name="request")(bound(body, services)))
    return bp
