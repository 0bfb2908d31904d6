"""Resolve names, prove that source and target can be reached, decide what the run does, and write it down."""

from datetime import datetime
from typing import Any

from shared.engine.index_source import commit_drives
from shared.engine.ledger import fold_unfinished, pair_of
from shared.engine.sources import DriveTree
from shared.model.job import BlobSource, FolderSource, SharePointSource, parse_files_job
from shared.model.steps import RunDecisions, RunRequest
from shared.services import Services

# Names are resolved anew where the run had to wait for longer than this before it began.
_FRESH_S = 60.0


async def run(services: Services, request: RunRequest) -> RunDecisions:
    """Idempotent. Fails the run at once where every item would fail: endpoint, scope, permission, missing folder."""
    records = services.records(request["run"])
    document = await records.load("run.json")
    if document is None:
        raise LookupError(f"the run store holds no run {request['run']}")
    job = parse_files_job(document["spec"])
    services.forget_run(request["run"])
    places = job.places()
    # Where a round of failed items is prepared, the sources are those of the first.
    before = await records.load("prepared.json") if request["round"] > 1 else None
    sources: list[dict[str, Any]] = before["sources"] if before else [
        {"real_path": path} for path in document["source_paths"]
    ]  # fmt: skip
    tree = services.sources(job, sources, records)
    await tree.check()
    for known, (source, sub), part in zip(sources, places, tree.parts, strict=True):
        if isinstance(part.tree, DriveTree):
            known["place"] = await part.tree.feed.place()
        known["about"] = about(source, known)
        known["sub"] = sub
    resolved = _resolved_at_start(document, services) if request["round"] == 1 else None
    workspace_id, lakehouse_id = resolved or await services.resolve(job.target)
    lake = services.lake_folder(job, workspace_id, lakehouse_id)
    is_new = await lake.check(write=not job.dry_run)
    for earlier in document["earlier_runs"]:
        left = services.records(earlier)
        if await fold_unfinished(left, job.name):
            await commit_drives(left)
    settings = services.settings
    whence = " + ".join(f"{known['about']} as {known['sub']}" if known["sub"] else known["about"] for known in sources)
    await records.save("prepared.json", {
        "workspace_id": workspace_id, "lakehouse_id": lakehouse_id, "sources": sources,
        "source_identity": await tree.identity(),
        # In whole seconds, as the service tells when a file was written.
        "prepared_at": services.clock().replace(microsecond=0).isoformat(),
        "pair": pair_of(whence, f"{workspace_id}/{lakehouse_id}/{job.target.path}"),
    })  # fmt: skip
    return {
        # A folder that was made a moment ago shows nothing.
        "survey": request["round"] == 1 and job.mode == "full" and not is_new,
        "index": [number for number, (source, _) in enumerate(places) if source.type != "folder"]
        if request["round"] == 1
        else [],
        "dry_run": job.dry_run,
        "verify": job.verify,
        "sample_items": settings.verify_sample_items,
        "parallel_batches": job.limits.parallel_batches,
        "retry": {"attempts": settings.retry_attempts, "first_delay_s": settings.retry_first_delay_s},
    }


def _resolved_at_start(document: dict[str, Any], services: Services) -> tuple[str, str] | None:
    """What the target's names meant when the run was started, if that was a moment ago."""
    ids = document.get("target_ids")
    if not ids or (services.clock() - datetime.fromisoformat(document["started_at"])).total_seconds() > _FRESH_S:
        return None
    return str(ids[0]), str(ids[1])


def about(source: FolderSource | SharePointSource | BlobSource, known: dict[str, Any]) -> str:
    """What tells a source from every other one: what the ledger is about."""
    match source.type:
        case "folder":
            return f"folder {known['real_path']}"
        case "sharepoint":
            drive, folder = known["place"]
            return f"drive {drive}/{folder or ''}"
        case "blob":
            return f"container {source.account_url.rstrip('/')}/{source.container}/{source.prefix.strip('/')}"
