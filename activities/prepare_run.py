"""Resolve names, prove that source and target can be reached, decide what the run does, and write it down."""

from shared.engine.ledger import fold_unfinished, pair_of
from shared.model.job import parse_job
from shared.model.steps import RunDecisions, RunRequest
from shared.services import Services


async def run(services: Services, request: RunRequest) -> RunDecisions:
    """Idempotent. Fails the run at once where every item would fail: endpoint, scope, permission, missing folder."""
    records = services.records(request["run"])
    document = await records.load("run.json")
    if document is None:
        raise LookupError(f"the run store holds no run {request['run']}")
    job = parse_job(document["spec"])
    services.forget_run(request["run"])
    source = services.source(document["source_path"])
    await source.check()
    workspace_id, lakehouse_id = await services.resolve(job.target)
    lake = services.lake_folder(job, workspace_id, lakehouse_id)
    await lake.check(write=not job.dry_run)
    for earlier in document["earlier_runs"]:
        await fold_unfinished(services.records(earlier), job.name)
    settings = services.settings
    await records.save("prepared.json", {
        "workspace_id": workspace_id, "lakehouse_id": lakehouse_id, "source_path": document["source_path"],
        "source_identity": await source.identity(),
        # In whole seconds, as the service tells when a file was written.
        "prepared_at": services.clock().replace(microsecond=0).isoformat(),
        "pair": pair_of(f"folder {document['source_path']}", f"{workspace_id}/{lakehouse_id}/{job.target.path}"),
    })  # fmt: skip
    return {
        "survey": request["round"] == 1 and job.mode == "full",
        "dry_run": job.dry_run,
        "verify": job.verify,
        "sample_items": settings.verify_sample_items,
        "parallel_batches": job.limits.parallel_batches,
        "retry": {"attempts": settings.retry_attempts, "first_delay_s": settings.retry_first_delay_s},
    }
