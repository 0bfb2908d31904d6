"""Copy one part of a version's files."""

from shared.engine.mltables import steps
from shared.model.mltable_steps import PartRequest, StepOutcome
from shared.services import Services


async def run(services: Services, request: PartRequest) -> StepOutcome:
    """Idempotent: files that are there are recognised."""
    mltables = await services.mltable_run(request["run"])
    return await steps.copy_step(mltables, request["group"], request["version"], request["part"])
