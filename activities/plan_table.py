"""Decide what is read of a table, and how, and write it down."""

from shared.model.sql_steps import TableOutcome, TableRequest
from shared.services import Services


async def run(services: Services, request: TableRequest) -> TableOutcome:
    """Idempotent: a decision that was written stands."""
    from shared.engine.sql import steps

    sql, target = await services.sql_run(request["run"])
    return await steps.plan_step(sql, target, request["table"], request["turn"])
