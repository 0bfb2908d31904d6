"""Decide what to do about one version of an asset."""

from shared.engine.mltables import steps
from shared.model.mltable_steps import StepOutcome, VersionRequest
from shared.services import Services


async def run(services: Services, request: VersionRequest) -> StepOutcome:
    """Idempotent: the decision is written over until the version is copied."""
    mltables = await services.mltable_run(request["run"])
    return await steps.plan_step(mltables, request["group"], request["version"])
