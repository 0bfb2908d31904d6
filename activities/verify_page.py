"""Compare one page's records with the lake."""

from shared.engine import verify_page
from shared.model.steps import VerifyPageOutcome, VerifyPageRequest
from shared.services import Services


async def run(services: Services, request: VerifyPageRequest) -> VerifyPageOutcome:
    """Idempotent: a repeat reads and compares the same again."""
    files_run = await services.files_run(request["run"], request["round"])
    result, counts, position = await verify_page.verify_page(
        files_run, request["page"], request["survey"], request["position"], request["sample_share"]
    )
    return {"result": result, "counts": counts, "position": position}
