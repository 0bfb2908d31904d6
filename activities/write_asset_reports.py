"""Write manifest and sign-off of an MLTable migration."""

from shared import VERSION
from shared.engine.mltables import report
from shared.model.mltable_steps import MltableReportRequest, ReportOutcome
from shared.services import Services


async def run(services: Services, request: MltableReportRequest) -> ReportOutcome:
    """Idempotent: written anew from the same records. Returns sums."""
    records = services.records(request["run"])
    document = await records.load("run.json")
    if document is None:
        raise LookupError(f"the run store holds no run {request['run']}")
    header = {
        "id": request["run"], "kind": "mltable", "name": document["name"], "status": request["status"],
        "round": request["round"], "started_at": document["started_at"], "ended_at": request["ended_at"],
        "error": request["error"], "spec": document["spec"], "app_version": VERSION,
    }  # fmt: skip
    # A run that could not be prepared has no workspaces to be asked, and a manifest all the same.
    mltables = await services.mltable_run(request["run"]) if await records.load("prepared.json") else None
    return await report.write_reports(services.asset_records(request["run"]), mltables, header)
