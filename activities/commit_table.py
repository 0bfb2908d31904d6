"""Make what was extracted of a table visible, and save how far it has been read."""

from shared.model.sql_steps import TableOutcome, TableRequest
from shared.services import Services


async def run(services: Services, request: TableRequest) -> TableOutcome:
    """Idempotent: a commit is known again by its number."""
    from shared.engine.sql import steps

    sql, target = await services.sql_run(request["run"])
    return await steps.commit_step(sql, target, request["table"], request["turn"])
