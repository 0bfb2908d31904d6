"""Move the items of one batch."""

from shared.engine import transfer_batch
from shared.model.steps import TransferBatchOutcome, TransferBatchRequest
from shared.services import Services


async def run(services: Services, request: TransferBatchRequest) -> TransferBatchOutcome:
    """Idempotent: items that an earlier delivery recorded or moved are recognised."""
    files_run = await services.files_run(request["run"], request["round"])
    return await transfer_batch.transfer_batch(
        files_run, request["page"], request["batch"], request["attempt"], final=request["final"]
    )
