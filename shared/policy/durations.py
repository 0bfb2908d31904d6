"""How long a run may take, and what says so.

Facts (SharePoint, "Avoid getting throttled or blocked"): by its tenant's number of licences an app may spend 1,250
to 6,250 resource units a minute and 1.2 to 6 million in 24 hours; it may receive 400 GB an hour; a download costs one
unit.
"""

from dataclasses import dataclass
from typing import Any

from shared.policy.quantities import show_bytes


@dataclass(frozen=True, slots=True)
class Band:
    """What an app may spend in a tenant with so many licences."""

    licences: str
    units_per_minute: int
    units_per_day: int


BANDS = (
    Band("up to 1,000 licences", 1_250, 1_200_000),
    Band("1,001 to 5,000 licences", 2_500, 2_400_000),
    Band("5,001 to 15,000 licences", 3_750, 3_600_000),
    Band("15,001 to 50,000 licences", 5_000, 4_800_000),
    Band("more than 50,000 licences", 6_250, 6_000_000),
)
_EGRESS_BYTES_PER_HOUR = 400 * 10**9
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a run would read: items and bytes."""

    items: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What an earlier run did: so much in so many seconds from its start to its end.

    ``own``: of this very job; else of another with the same kinds of sources.
    """

    run: str
    own: bool
    load: Load
    elapsed_s: float

    @property
    def is_rough(self) -> bool:
        """Whether the run was too small to tell a rate from what every run takes to begin and end."""
        return self.load.items < 100 and self.load.size_bytes < 2**30


def estimate(
    load: Load,
    *,
    sharepoint: Load,
    units_per_minute: int | None,
    bandwidth: int | None,
    measured: Measured | None,
) -> dict[str, Any]:
    """How long reading and writing ``load`` takes, from everything that is known to limit it.

    Args:
        load: All that a run would move, at most.
        sharepoint: What of it comes from SharePoint.
        units_per_minute: Resource units that one worker may spend, where a setting says so.
        bandwidth: Bytes a second of one worker, where the job says so.
        measured: An earlier run, if there is one.

    Returns:
        ``expected_s`` (None where nothing is known that would tell) with ``rests_on``, a sentence, and ``at_least``:
        whether a limit says so and nothing that was measured; ``bounds``: each of what it was made from; ``bands``: the
        least for each band of licences, where SharePoint limits the run and nobody said how much it gives.
    """
    bounds: list[dict[str, Any]] = []
    bands: list[dict[str, Any]] = []
    if sharepoint.items:
        if units_per_minute is not None:
            bounds.append({
                "basis": "source_ceiling", "at_least": True, "seconds": _download_s(sharepoint, units_per_minute),
                "says": f"{sharepoint.items:,} downloads from SharePoint, one resource unit each, at the "
                        f"{units_per_minute:,} a minute of GRAPH_UNITS_PER_MINUTE",
            })  # fmt: skip
        else:
            bands = [
                {"licences": band.licences, "units_per_minute": band.units_per_minute,
                 "seconds": _download_s(sharepoint, band.units_per_minute)}
                for band in BANDS
            ]  # fmt: skip
    if bandwidth and load.size_bytes:
        bounds.append({
            "basis": "bandwidth", "at_least": True, "seconds": load.size_bytes / bandwidth,
            "says": f"{show_bytes(load.size_bytes)} with one worker at {show_bytes(bandwidth)}/s, which is "
                    "the job's limits.bandwidth",
        })  # fmt: skip
    if measured is not None and load.items:
        bounds.append({
            "basis": "measured", "at_least": False, "seconds": _measured_s(load, measured), "says": _said(measured),
        })  # fmt: skip
    longest = max(bounds, key=lambda bound: float(bound["seconds"]), default=None)
    if not load.items:
        expected_s, rests_on = 0.0, "there is nothing to move"
    elif longest is not None:
        expected_s, rests_on = longest["seconds"], longest["says"]
    else:
        expected_s, rests_on = (
            None,
            ("no run of this job, nor of one like it, has been measured yet, and no setting limits the rate"),
        )
    return {
        "items": load.items, "bytes": load.size_bytes, "expected_s": expected_s,
        "at_least": bool(longest and longest["at_least"]), "rests_on": rests_on, "bounds": bounds, "bands": bands,
    }  # fmt: skip


def _download_s(load: Load, units_per_minute: int) -> float:
    per_day = next((band.units_per_day for band in BANDS if band.units_per_minute >= units_per_minute),
                   BANDS[-1].units_per_day)  # fmt: skip
    # Whoever spends a minute's worth in every minute has spent the day's before the day is over.
    days, rest = divmod(max(0, load.items - 1), per_day)
    by_units = days * _DAY_S + (rest + 1) / units_per_minute * 60 if load.items else 0.0
    return max(by_units, load.size_bytes / _EGRESS_BYTES_PER_HOUR * 3600)


def _measured_s(load: Load, measured: Measured) -> float:
    # Whichever of the two limited the run then, the other cannot have been faster than that.
    by_items = load.items / measured.load.items if measured.load.items else 0.0
    by_bytes = load.size_bytes / measured.load.size_bytes if measured.load.size_bytes else 0.0
    return max(by_items, by_bytes) * measured.elapsed_s


def _said(measured: Measured) -> str:
    whose = "this job's run" if measured.own else "another job's run"
    items, size_bytes, elapsed_s = measured.load.items, measured.load.size_bytes, max(1.0, measured.elapsed_s)
    text = (
        f"{whose} {measured.run} moved {items:,} items at {items / elapsed_s:,.1f}/s and "
        f"{show_bytes(size_bytes / elapsed_s)}/s, from its start to its end"
    )
    return f"{text}; it was small, so this is rough" if measured.is_rough else text
