"""Load the head of the table from both sides and compare."""

from shared.engine.mltables import steps
from shared.model.mltable_steps import StepOutcome, VersionRequest
from shared.services import Services


async def run(services: Services, request: VersionRequest) -> StepOutcome:
    """Idempotent: a repeat loads the same again."""
    mltables = await services.mltable_run(request["run"])
    return await steps.validate_step(mltables, request["group"], request["version"])
