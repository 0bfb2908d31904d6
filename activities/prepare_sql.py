"""Prove that database and lakehouse can be reached, and turn the job's wishes into a list of tables."""

from shared.model.sql_steps import SqlDecisions, SqlRequest
from shared.services import Services


async def run(services: Services, request: SqlRequest) -> SqlDecisions:
    """Idempotent. Fails the run at once where every table would fail: connection, permission, missing lakehouse."""
    job, numbers, counts, parallel = await services.prepare_sql(request["run"], request["round"])
    settings = services.settings
    return {
        "dry_run": job.dry_run,
        "parallel_tables": parallel,
        "tables": numbers,
        "counts": counts,
        "retry": {"attempts": settings.retry_attempts, "first_delay_s": settings.retry_first_delay_s},
    }
