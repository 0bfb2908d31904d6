"""The rates of the status document, where the process that answers has not watched the run before."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from azure.durable_functions.models.DurableOrchestrationStatus import DurableOrchestrationStatus

from triggers.status import status_document


class Client:
    """Answers with one instance, as the management API shows it."""

    def __init__(self, runtime_status: str, started: datetime, updated: datetime) -> None:
        self._shown: dict[str, Any] = {
            "name": "migrate_files", "instanceId": "run", "runtimeStatus": runtime_status,
            "createdTime": started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lastUpdatedTime": updated.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "input": {"kind": "files", "name": "job", "round": 1, "started_at": started.strftime("%Y-%m-%dT%H:%M:%SZ")},
            "customStatus": {"phase": "transferring", "planning_done": True, "children": [],
                             "counts": {"planned": 1000, "uploaded": 600, "bytes_planned": 10_000, "bytes_done": 6000}},
            "output": {"status": "completed"},
        }  # fmt: skip

    async def get_status(self, run: str, show_input: bool = False) -> DurableOrchestrationStatus:
        return DurableOrchestrationStatus.from_json(self._shown)


async def test_a_run_that_goes_on_is_rated_over_the_time_until_now() -> None:
    started = datetime.now(UTC) - timedelta(seconds=600)
    document = await status_document(Client("Running", started, started + timedelta(seconds=1)), "going-on", "")  # type: ignore[arg-type]
    assert document is not None
    assert document["progress"]["items_per_s"] == pytest.approx(1.0, rel=0.1)
    assert document["progress"]["eta_s"] == pytest.approx(400, rel=0.1)


async def test_a_run_that_ended_is_rated_over_the_time_it_took() -> None:
    started = datetime.now(UTC) - timedelta(seconds=600)
    document = await status_document(Client("Completed", started, started + timedelta(seconds=60)), "ended", "")  # type: ignore[arg-type]
    assert document is not None
    assert document["progress"]["items_per_s"] == pytest.approx(10.0)
