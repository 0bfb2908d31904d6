"""The status document: where a run stands, from what Durable Functions knows of it."""

import json
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from azure.durable_functions import DurableOrchestrationClient, OrchestrationRuntimeStatus

from shared.model.steps import Counts, LevelChange, add_changes, add_counts, no_counts
from triggers.starting import ALIVE

RowsUnderWay = Callable[[str], Awaitable[int]]

STATUSES = (
    "planning", "transferring", "verifying", "paused", "completed", "completed_with_failures", "failed", "cancelled",
)  # fmt: skip
FINISHED = frozenset({"completed", "completed_with_failures", "failed", "cancelled"})

_PHASES = {
    "planning": "planning", "transferring": "transferring", "retrying": "transferring", "verifying": "verifying",
    "finishing": "verifying",
}  # fmt: skip
_ROWS = ("rows_planned", "rows_done")
"""Counts that a migration of tables has beside the others."""
# The rate is that of the last half minute, as this worker saw it, so that it is not that of the whole past.
_WINDOW_S = 30.0
_SAMPLED_RUNS = 64


class Rates:
    """Samples of progress, to tell the present rate."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[tuple[float, int, int]]] = {}

    def rate(self, run: str, items: int, size_bytes: int) -> tuple[float, float] | None:
        """Items and bytes a second over the window, or None on the first look at a run."""
        now_s = time.monotonic()
        samples = self._samples.setdefault(run, deque())
        while len(samples) > 1 and now_s - samples[1][0] > _WINDOW_S:
            samples.popleft()
        samples.append((now_s, items, size_bytes))
        while len(self._samples) > _SAMPLED_RUNS:
            self._samples.pop(next(iter(self._samples)))
        then_s, items_then, bytes_then = samples[0]
        passed_s = now_s - then_s
        if passed_s < 1.0 or items < items_then:
            return None
        return (items - items_then) / passed_s, (size_bytes - bytes_then) / passed_s


RATES = Rates()


async def status_document(
    client: DurableOrchestrationClient, run: str, api_url: str, rows_under_way: RowsUnderWay | None = None
) -> dict[str, Any] | None:
    """The status document of a run, or None if there is no such run.

    Args:
        client: The durable client.
        run: The run's id.
        api_url: This API's own address.
        rows_under_way: Tells how many rows of tables are being read that no step has counted yet.
    """
    found = await client.get_status(run, show_input=True)
    if found is None or found.runtime_status is None:
        return None
    given = _decoded(found.input_)
    if not isinstance(given, dict) or "started_at" not in given:
        return None
    shown = _decoded(found.custom_status)
    shown = shown if isinstance(shown, dict) else {}
    output = _decoded(found.output)
    rows = dict.fromkeys(_ROWS, 0) if given["kind"] == "sql" else {}
    counts: Counts = {**no_counts(), **rows, **shown.get("counts", {})}  # type: ignore[typeddict-item]
    concurrency, source_load, updated_at = None, None, found.last_updated_time
    if found.runtime_status in ALIVE:
        for child in shown.get("children", []):
            page, moment = await _add_child(client, child, counts)
            concurrency = page.get("concurrency") or concurrency
            source_load = page.get("source_load") or source_load
            updated_at = max(updated_at, moment or updated_at)
        if rows and rows_under_way is not None:
            _add_rows(counts, await rows_under_way(run))
    status = _status(found.runtime_status, shown, output)
    base = given.get("base")
    if base:
        counts = _over(base, counts)
    totals = shown.get("totals")
    if totals is not None:
        # The manifest has the last word: a run that was cut short leaves items that no step has counted.
        counts["planned"] = sum(totals.values())
        for name in ("uploaded", "skipped", "renamed", "failed", "deleted"):
            counts[name] = totals.get(name, 0)
    ended_at = _moment(found.last_updated_time) if status in FINISHED else None
    return {
        "id": run,
        "kind": given["kind"],
        "name": given["name"],
        "status": status,
        "started_at": given["started_at"],
        "updated_at": _moment(updated_at),
        "ended_at": ended_at,
        "round": given["round"],
        "phase": shown.get("phase", "planning"),
        "progress": _progress(run, counts, shown, given["started_at"], found, status),
        "concurrency": _levels(concurrency, shown.get("concurrency_changes", [])),
        "source_load": _load(source_load),
        "verification": shown.get("verification"),
        "error": _error(found.runtime_status, shown, output),
        "links": links(run, api_url),
    }


def links(run: str, api_url: str) -> dict[str, str]:
    """Where else to go about a run."""
    base = f"{api_url}/migrations/{run}"
    actions = {name: f"{base}/{name}" for name in ("manifest", "items", "pause", "resume", "cancel", "retry-failed")}
    return {"self": base, **actions}


async def _add_child(
    client: DurableOrchestrationClient, child: str, counts: Counts
) -> tuple[dict[str, Any], datetime | None]:
    """Add what a page in transfer has reached so far.

    Returns:
        What it shows of the worker that reported last, and when that was.
    """
    found = await client.get_status(child)
    if found is None or found.runtime_status is None:
        return {}, None
    shown = _decoded(found.custom_status)
    if not isinstance(shown, dict) or "counts" not in shown:
        return {}, found.last_updated_time
    add_counts(counts, shown["counts"])
    return shown, found.last_updated_time


def _levels(now: dict[str, Any] | None, before: list[LevelChange]) -> dict[str, Any] | None:
    """The present level of the worker that reported last, with the larger moves of all; after the end, those alone."""
    changes = add_changes(before, (now or {}).get("changes", []))
    if now is None and not changes:
        return None
    level, reason = (now["level"], now["reason"]) if now is not None else (None, None)
    return {"level": level, "reason": reason, "changes": changes}


def _add_rows(counts: Counts, more: int) -> None:
    """Rows that are being read, and about how many bytes they will be, by what the whole was estimated at."""
    planned: Any = counts.get("rows_planned", 0)
    counts["rows_done"] += more  # type: ignore[typeddict-item]
    if planned:
        counts["bytes_done"] += round(min(1.0, more / planned) * counts["bytes_planned"])


def _load(load: dict[str, Any] | None) -> dict[str, Any] | None:
    """Resource units of the source with the share of the ceiling that is in use."""
    if load is None:
        return None
    ceiling = load["ceiling"]
    return {**load, "share": round(load["units"] / ceiling, 3) if ceiling else None}


def _status(runtime: OrchestrationRuntimeStatus, shown: dict[str, Any], output: Any) -> str:
    if runtime is OrchestrationRuntimeStatus.Completed:
        return str(output["status"]) if isinstance(output, dict) and "status" in output else "completed"
    if runtime is OrchestrationRuntimeStatus.Failed:
        return "failed"
    if runtime in (OrchestrationRuntimeStatus.Terminated, OrchestrationRuntimeStatus.Canceled):
        return "cancelled"
    if runtime is OrchestrationRuntimeStatus.Suspended:
        return "paused"
    return _PHASES[shown.get("phase", "planning")]


def _over(base: Counts, now: Counts) -> Counts:
    """A round of failed items on top of what the rounds before had reached: what succeeds now fails no more."""
    mended = now["uploaded"] + now["skipped"] + now["renamed"] + now["deleted"]
    return {
        **base,
        "uploaded": base["uploaded"] + now["uploaded"],
        "skipped": base["skipped"] + now["skipped"],
        "renamed": base.get("renamed", 0) + now["renamed"],
        "deleted": base["deleted"] + now["deleted"],
        "failed": max(0, base["failed"] - mended),
        "bytes_planned": base["bytes_planned"],
        "bytes_done": base["bytes_done"] + now["bytes_done"],
        # Of tables.
        **{name: base.get(name, 0) + now.get(name, 0) for name in _ROWS if name in now},  # type: ignore[typeddict-item, operator]
    }


def _progress(
    run: str, counts: Counts, shown: dict[str, Any], started_at: str, found: Any, status: str
) -> dict[str, Any]:
    done = counts["uploaded"] + counts["skipped"] + counts["renamed"] + counts["deleted"]
    settled = done + counts["failed"]
    planning_done = bool(shown.get("planning_done"))
    # The orchestration itself is updated only now and then while its pages move.
    until = found.last_updated_time if status in FINISHED else datetime.now(UTC)
    elapsed_s = max(1.0, (until - datetime.fromisoformat(started_at)).total_seconds())
    rate = None if status in FINISHED else RATES.rate(run, settled, counts["bytes_done"])
    items_per_s, bytes_per_s = rate or (settled / elapsed_s, counts["bytes_done"] / elapsed_s)
    eta_s: int | None = None
    if status in FINISHED:
        eta_s = 0
    elif planning_done and (items_per_s > 0 or (bytes_per_s > 0 and "rows_done" in counts)):
        # Of a few tables none may have ended for long; how many of their bytes have come tells more.
        left_s = (counts["planned"] - settled) / items_per_s if items_per_s > 0 else 0.0
        if bytes_per_s > 0:
            left_s = max(left_s, (counts["bytes_planned"] - counts["bytes_done"]) / bytes_per_s)
        eta_s = max(0, round(left_s))
    return {
        "planned": counts["planned"],
        "planning_done": planning_done,
        "uploaded": counts["uploaded"],
        "skipped": counts["skipped"],
        "renamed": counts["renamed"],
        "failed": counts["failed"],
        "deleted": counts["deleted"],
        "listed": shown.get("listed", 0),
        "waiting_batches": shown.get("waiting", 0),
        "bytes_planned": counts["bytes_planned"],
        "bytes_done": counts["bytes_done"],
        "items_per_s": round(items_per_s, 2),
        "bytes_per_s": round(bytes_per_s, 1),
        "eta_s": eta_s,
        "success_rate": round(done / settled, 6) if settled else None,
        **{name: counts.get(name, 0) for name in _ROWS if name in counts},
    }


def _error(runtime: OrchestrationRuntimeStatus, shown: dict[str, Any], output: Any) -> dict[str, str] | None:
    error = shown.get("error")
    if error:
        return {"code": error["code"], "message": error["detail"]}
    if runtime is OrchestrationRuntimeStatus.Failed:
        return {"code": "internal_error", "message": str(output).strip().partition("\n")[0][:500]}
    return None


def _decoded(value: Any) -> Any:
    # The SDK decodes once; an input arrives as the JSON text that the client sent.
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _moment(moment: Any) -> str | None:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment is not None else None
