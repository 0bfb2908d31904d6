"""Extract one slice of a table, as of a moment of its own."""

from shared.model.sql_steps import SliceRequest, TableOutcome
from shared.services import Services


async def run(services: Services, request: SliceRequest) -> TableOutcome:
    """Idempotent: a slice that has its result keeps it; what an attempt left behind is deleted before the commit."""
    from shared.engine.sql import steps

    sql, _ = await services.sql_run(request["run"])
    return await steps.slice_step(sql, request["table"], request["turn"], request["slice"])
