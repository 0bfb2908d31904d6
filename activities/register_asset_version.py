"""Put the blueprint into place and register the version."""

from shared.engine.mltables import steps
from shared.model.mltable_steps import StepOutcome, VersionRequest
from shared.services import Services


async def run(services: Services, request: VersionRequest) -> StepOutcome:
    """Idempotent: a version that is registered with this folder is recognised."""
    mltables = await services.mltable_run(request["run"])
    return await steps.register_step(mltables, request["group"], request["version"])
