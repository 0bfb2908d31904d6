"""Record that the attempts of a version are used up."""

from shared.engine.mltables import steps
from shared.model.mltable_steps import FailRequest, StepOutcome
from shared.services import Services


async def run(services: Services, request: FailRequest) -> StepOutcome:
    """Idempotent: a version that has its record keeps it."""
    mltables = await services.mltable_run(request["run"])
    return await steps.fail_version(mltables, request["group"], request["version"], request["step"], request["error"])
