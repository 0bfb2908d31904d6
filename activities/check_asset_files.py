"""Compare what lies at the target with the plan."""

from shared.engine.mltables import steps
from shared.model.mltable_steps import StepOutcome, VersionRequest
from shared.services import Services


async def run(services: Services, request: VersionRequest) -> StepOutcome:
    """Idempotent: a repeat compares the same again."""
    mltables = await services.mltable_run(request["run"])
    return await steps.check_step(mltables, request["group"], request["version"])
