"""Write the manifest."""

from shared import VERSION
from shared.engine import write_manifest
from shared.model.job import parse_job
from shared.model.steps import ManifestRequest
from shared.services import Services


async def run(services: Services, request: ManifestRequest) -> dict[str, int]:
    """Idempotent: written anew from the same records. Returns items by status."""
    records = services.records(request["run"])
    document = await records.load("run.json")
    if document is None:
        raise LookupError(f"the run store holds no run {request['run']}")
    prepared = await records.load("prepared.json") or {}
    job = parse_job(document["spec"])
    header = {
        "id": request["run"],
        "kind": job.kind,
        "name": job.name,
        "status": request["status"],
        "round": request["round"],
        "started_at": document["started_at"],
        "ended_at": request["ended_at"],
        "target": f"{job.target.workspace}/{job.target.lakehouse}/{job.target.path}",
        "workspace_id": prepared.get("workspace_id"),
        "lakehouse_id": prepared.get("lakehouse_id"),
        "spec": document["spec"],
        "error": request["error"],
        "verification": request["verification"],
        "app_version": VERSION,
    }
    return await write_manifest.write_manifest(records, header)
