"""Write the manifest."""

from shared import VERSION
from shared.engine import write_manifest
from shared.engine.dry_run import DryRun
from shared.engine.past_runs import measured_rate
from shared.model.job import FilesJob, parse_files_job
from shared.model.steps import ManifestRequest
from shared.policy.precheck import Place
from shared.services import Services


async def run(services: Services, request: ManifestRequest) -> dict[str, int]:
    """Idempotent: written anew from the same records. Returns items by status."""
    records = services.records(request["run"])
    document = await records.load("run.json")
    if document is None:
        raise LookupError(f"the run store holds no run {request['run']}")
    prepared = await records.load("prepared.json") or {}
    job = parse_files_job(document["spec"])
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
        "concurrency_changes": request.get("concurrency_changes", []),
        "app_version": VERSION,
    }
    dry_run = await _dry_run(services, job, request["run"]) if job.dry_run else None
    return await write_manifest.write_manifest(records, header, dry_run)


async def _dry_run(services: Services, job: FilesJob, run: str) -> DryRun:
    places = tuple(Place(sub, source.type) for source, sub in job.places())
    records = services.records(run)
    read = [await records.load(f"source-{number}/state.json") or {} for number in range(len(places))]
    return DryRun(
        places=places,
        changes_only=not all(state.get("is_fresh", True) for state in read),
        units_per_minute=services.settings.graph_units_per_minute,
        bandwidth=job.limits.bandwidth,
        measured=await measured_rate(services.store, job.name, {place.type for place in places}, without=run),
    )
