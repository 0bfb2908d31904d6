"""Prove that both workspaces and the storage behind them can be reached, and write down where they keep their data."""

from shared.model.mltable_steps import MltableDecisions, MltableRequest
from shared.services import Services


async def run(services: Services, request: MltableRequest) -> MltableDecisions:
    """Idempotent. Fails the run at once where every asset would fail: token, permission, missing workspace."""
    job = await services.prepare_mltables(request["run"])
    settings = services.settings
    defaults = job.config.defaults
    return {
        "dry_run": defaults.dry_run,
        "parallel_assets": defaults.parallel_assets,
        "retry": {"attempts": settings.retry_attempts, "first_delay_s": settings.retry_first_delay_s},
    }
