"""One living run of a job at a time."""

import json
from collections.abc import Awaitable, Callable

from shared.errors import JobBusy
from shared.ports import RunStore

_REMEMBERED = 20

IsAlive = Callable[[str, str], Awaitable[bool]]
"""(run, claimed_at) -> whether that run may still change anything."""


async def claim(store: RunStore, job: str, run: str, claimed_at: str, is_alive: IsAlive) -> tuple[str, list[str]]:
    """Make ``run`` the current run of ``job``.

    Every claim creates the next numbered object, on the condition that it does not exist; of two claims at once one
    wins, on every kind of object storage.

    Returns:
        The claim's key, to withdraw it by, and the ids of the job's earlier runs, oldest first.

    Raises:
        JobBusy: the current run is alive, or another claim was faster.
    """
    prefix = f"jobs/{job}/runs"
    keys = await store.list(prefix)
    earlier = [json.loads(await store.get(key) or b"{}") for key in keys[-_REMEMBERED:]]
    if earlier and earlier[-1] and await is_alive(earlier[-1]["run"], earlier[-1]["claimed_at"]):
        raise JobBusy(earlier[-1]["run"])
    number = int(keys[-1].rpartition("/")[2].removesuffix(".json")) + 1 if keys else 1
    key = f"{prefix}/{number:08d}.json"
    if not await store.put_new(key, json.dumps({"run": run, "claimed_at": claimed_at}).encode()):
        raise JobBusy("another start of the same moment")
    await store.delete(keys[:-_REMEMBERED])
    return key, [one["run"] for one in earlier if one and one["run"] != run]


async def followed_by(store: RunStore, job: str, run: str) -> str | None:
    """A run of the job that moved something after ``run`` did, or None. A dry run moves nothing."""
    for key in reversed(await store.list(f"jobs/{job}/runs")):
        claimed = json.loads(await store.get(key) or b"{}").get("run")
        if claimed == run:
            return None
        document = json.loads(await store.get(f"runs/{claimed}/run.json") or b"{}")
        if document and not document["spec"].get("dry_run"):
            return str(claimed)
    return None


async def withdraw(store: RunStore, job: str, run: str) -> None:
    """Delete the claims of a run that is purged: without its instance it would look like one that is being started."""
    for key in await store.list(f"jobs/{job}/runs"):
        if json.loads(await store.get(key) or b"{}").get("run") == run:
            await store.delete([key])
