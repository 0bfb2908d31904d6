"""How fast earlier runs were, as their summaries in the run store say."""

import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from shared.policy.durations import Load, Measured
from shared.ports import RunStore

# Summaries that are read, at most, of the job's own runs and of others.
_LOOK_UPS = 10
_COMPLETED = ("completed", "completed_with_failures")


async def measured_rate(store: RunStore, job: str, types: set[str], *, without: str) -> Measured | None:
    """The last run of the job that moved something, or else of another files job with the same kinds of sources.

    A run that was too small to tell a rate stands only where there is none that was large enough.

    Args:
        store: The run store.
        job: The job's name.
        types: Of its sources.
        without: The run that asks.
    """
    rough: Measured | None = None
    async for own, run in _candidates(store, job, without):
        found = await _measured(store, run, types, own=own)
        if found is not None and not found.is_rough:
            return found
        rough = rough or found
    return rough


async def _candidates(store: RunStore, job: str, without: str) -> AsyncIterator[tuple[bool, str]]:
    """The job's own runs, then others; each newest first."""
    claims = (await store.list(f"jobs/{job}/runs"))[::-1][:_LOOK_UPS]
    own = [json.loads(await store.get(key) or b"{}").get("run") for key in claims]
    for run in own:
        if run and run != without:
            yield True, run
    # Keys of the index sort by time.
    others = [key.removesuffix(".json").partition("_")[2] for key in reversed(await store.list("index"))]
    for run in [run for run in others if run.startswith("files-") and run != without and run not in own][:_LOOK_UPS]:
        yield False, run


async def _measured(store: RunStore, run: str, types: set[str], *, own: bool) -> Measured | None:
    data = await store.get(f"runs/{run}/summary.json")
    if data is None:
        return None
    summary = json.loads(data)
    # The clock of a second round began with the first, and stood still in between.
    if summary.get("status") not in _COMPLETED or summary.get("round") != 1 or source_types(summary["spec"]) != types:
        return None
    load = Load(summary["counts"].get("uploaded", 0), summary["bytes"].get("uploaded", 0))
    passed = datetime.fromisoformat(summary["ended_at"]) - datetime.fromisoformat(summary["started_at"])
    # Both are told in whole seconds.
    return Measured(run, own, load, max(1.0, passed.total_seconds())) if load.items else None


def source_types(spec: dict[str, Any]) -> set[str]:
    """The kinds of sources of a files job's spec, as it was stored."""
    return {source["type"] for source in [spec.get("source"), *(spec.get("sources") or [])] if source}
