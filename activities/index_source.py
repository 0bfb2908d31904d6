"""Read on in a source that does not list itself in the order of paths."""

from shared.engine import index_source
from shared.model.steps import IndexSourceOutcome, IndexSourceRequest
from shared.services import Services


async def run(services: Services, request: IndexSourceRequest) -> IndexSourceOutcome:
    """Idempotent: a repeat goes on from what was noted down."""
    files_run = await services.files_run(request["run"], request["round"])
    items, done = await index_source.index_source(files_run, request["source"])
    return {"items": items, "done": done, "cancelled": not done and await files_run.records.cancelled()}
