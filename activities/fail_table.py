"""Record that the attempts of a table are used up."""

from shared.model.sql_steps import FailTableRequest, TableOutcome
from shared.services import Services


async def run(services: Services, request: FailTableRequest) -> TableOutcome:
    """Idempotent: a table that has its record keeps it."""
    from shared.engine.sql import steps

    sql, _ = await services.sql_run(request["run"])
    return await steps.fail_table(sql, request["table"], request["step"], request["error"])
