"""Plan one page of the source."""

from shared.engine import plan_page
from shared.model.steps import PlanPageOutcome, PlanPageRequest
from shared.services import Services


async def run(services: Services, request: PlanPageRequest) -> PlanPageOutcome:
    """Idempotent until the page's first batch is transferred, and nothing schedules one before this returns."""
    files_run = await services.files_run(request["run"], request["round"])
    batches, counts, cursor = await plan_page.plan_page(files_run, request["page"], request["round"], request["cursor"])
    return {"page": request["page"], "batches": batches, "counts": counts, "cursor": cursor}
