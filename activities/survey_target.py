"""List a stretch of the target, and note what is there."""

from shared.engine import survey
from shared.model.steps import SurveyOutcome, SurveyRequest
from shared.services import Services


async def run(services: Services, request: SurveyRequest) -> SurveyOutcome:
    """Idempotent: a repeat writes the same chunk again. Leftovers of kills are removed."""
    files_run = await services.files_run(request["run"], request["round"])
    files, continuation = await survey.survey_target(
        files_run, request["survey"], request["chunk"], request["continuation"]
    )
    return {"files": files, "continuation": continuation}
