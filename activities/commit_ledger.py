"""Remember what the run has moved."""

from shared.engine import emptied_folders, index_source, ledger
from shared.model.job import parse_job
from shared.model.steps import RunRequest
from shared.services import Services


async def run(services: Services, request: RunRequest) -> dict[str, int]:
    """Idempotent: the same records give the same ledger."""
    records = services.records(request["run"])
    document = await records.load("run.json")
    if document is None:
        raise LookupError(f"the run store holds no run {request['run']}")
    rows = await ledger.commit_ledger(records, parse_job(document["spec"]).name)
    # After the ledger: what is known of a drive may be older than it, never newer.
    await index_source.commit_drives(records)
    if await records.load("prepared.json") is not None:
        await emptied_folders.remove_emptied_folders(await services.files_run(request["run"], request["round"]))
    return {"rows": rows}
