"""Write the manifest of a SQL migration."""

from shared import VERSION
from shared.engine.sql import report
from shared.model.sql_steps import SqlReportOutcome, SqlReportRequest
from shared.services import Services


async def run(services: Services, request: SqlReportRequest) -> SqlReportOutcome:
    """Idempotent: written anew from the same records. Returns sums."""
    records = services.sql_records(request["run"])
    document = await records.load("run.json")
    if document is None:
        raise LookupError(f"the run store holds no run {request['run']}")
    header = {
        "id": request["run"], "kind": "sql", "name": document["name"], "status": request["status"],
        "round": request["round"], "started_at": document["started_at"], "ended_at": request["ended_at"],
        "error": request["error"], "spec": document["spec"], "app_version": VERSION,
    }  # fmt: skip
    return await report.write_reports(records, header)
