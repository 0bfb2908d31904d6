"""Turn the configuration into versions to migrate, and list what else the source holds."""

from shared.engine.mltables import discover
from shared.model.mltable_steps import DiscoverOutcome, MltableRequest
from shared.services import Services


async def run(services: Services, request: MltableRequest) -> DiscoverOutcome:
    """Idempotent until the first version is planned, and nothing schedules one before this returns."""
    mltables = await services.mltable_run(request["run"])
    groups, counts = await discover.discover(mltables, request["round"])
    return {"groups": groups, "counts": counts}
