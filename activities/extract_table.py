"""Extract all of a table as of one moment."""

from shared.model.sql_steps import TableOutcome, TableRequest
from shared.services import Services


async def run(services: Services, request: TableRequest) -> TableOutcome:
    """Idempotent: a table that has its result keeps it."""
    from shared.engine.sql import steps

    sql, _ = await services.sql_run(request["run"])
    return await steps.table_step(sql, request["table"], request["turn"])
