"""Deterministic workflows: what happens in which order, and nothing else."""

import azure.durable_functions as df

from orchestrators.migrate_asset import migrate_asset
from orchestrators.migrate_files import migrate_files
from orchestrators.migrate_mltables import migrate_mltables
from orchestrators.migrate_sql import migrate_sql
from orchestrators.migrate_table import migrate_table
from orchestrators.transfer_page import transfer_page
from shared import names

ORCHESTRATORS = {
    names.MIGRATE_FILES: migrate_files,
    names.TRANSFER_PAGE: transfer_page,
    names.MIGRATE_MLTABLES: migrate_mltables,
    names.MIGRATE_ASSET: migrate_asset,
    names.MIGRATE_SQL: migrate_sql,
    names.MIGRATE_TABLE: migrate_table,
}


def blueprint() -> df.Blueprint:
    """All orchestrators, registered under their wire names; the functions themselves stay plain."""
    bp = df.Blueprint()
    for name, orchestrator in ORCHESTRATORS.items():
        bp.function_name(name)(bp.orchestration_trigger(context_name="context")(orchestrator))
    return bp
