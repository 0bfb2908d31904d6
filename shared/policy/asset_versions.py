"""Which versions of which assets a configuration means, what they are called at the target, and how they are tagged."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shared.policy.globs import Globs

_RANGE = re.compile(r"([0-9]{0,18})\.\.([0-9]{0,18})")
_VERSION = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,29}")
_WILD = re.compile(r"[*?\[{]")


@dataclass(frozen=True, slots=True)
class ListedVersion:
    """A version as the source's listing shows it. ``created_at`` is ISO 8601 or empty."""

    version: str
    created_at: str = ""
    archived: bool = False


@dataclass(frozen=True, slots=True)
class Selected:
    """One version to migrate.

    Attributes:
        spec: The position of the entry of ``assets`` that asked for it first.
        requested: As it was asked for: a version, ``latest``, ``*``, a range.
    """

    name: str
    version: str
    spec: int
    requested: str


@dataclass(frozen=True, slots=True)
class Unmet:
    """A wish that nothing in the source answers."""

    name: str
    requested: str
    spec: int
    reason: str


def is_glob(name: str) -> bool:
    return _WILD.search(name) is not None


def check_version_wish(wish: str) -> str:
    """A version as a configuration names it.

    Raises:
        ValueError: it is none of a version, ``latest``, ``*`` and a range such as ``3..12``.
    """
    if wish in ("latest", "*"):
        return wish
    if ".." in wish:
        match = _RANGE.fullmatch(wish)
        if not match or not (match[1] or match[2]):
            raise ValueError("a range is two whole numbers with '..' between, such as 3..12, 3.. or ..12")
        if match[1] and match[2] and int(match[1]) > int(match[2]):
            raise ValueError("the range ends before it begins")
        return wish
    if not _VERSION.fullmatch(wish):
        raise ValueError("write a version, 'latest', '*' or a range such as '3..12'")
    return wish


def in_source_order(versions: Sequence[ListedVersion]) -> list[ListedVersion]:
    """Oldest first, so that what is registered last is what was registered last."""
    return sorted(versions, key=lambda one: (one.created_at, _number(one.version), one.version))


def select(
    wishes: Sequence[tuple[str, Sequence[str]]],
    listed: Mapping[str, Sequence[ListedVersion]],
    latest: Mapping[str, str],
) -> tuple[list[Selected], list[Unmet]]:
    """The versions that a configuration means, each once, assets in the order of the wishes, versions in the source's.

    Args:
        wishes: Name or glob of assets, and versions, of each entry.
        listed: Every MLTable of the source that was looked at, with its versions; empty where there is none.
        latest: What the source calls the latest version of each.
    """
    chosen: dict[tuple[str, str], Selected] = {}
    unmet: list[Unmet] = []
    for spec, (name, versions) in enumerate(wishes):
        names = [one for one in sorted(listed) if Globs([name]).match(one)] if is_glob(name) else [name]
        if not names:
            unmet += [Unmet(name, wish, spec, "no MLTable of the source has such a name") for wish in versions]
        met: set[str] = set()
        for asset in names:
            known = listed.get(asset, ())
            names_known = {one.version for one in known} - {"latest"}
            for wish in versions:
                for version in [wish] if wish in names_known else _meant(wish, known, latest.get(asset)):
                    met.add(wish)
                    chosen.setdefault((asset, version), Selected(asset, version, spec, wish))
        if names:
            # Of a glob, some asset has to have it.
            reason = "the source has no such version of " + ("any asset of such a name" if is_glob(name) else "it")
            unmet += [Unmet(name, wish, spec, reason) for wish in versions if wish not in met]
    by_name: dict[str, list[Selected]] = {}
    for one in chosen.values():
        by_name.setdefault(one.name, []).append(one)
    ordered = []
    for name, mine in by_name.items():
        wanted = {one.version: one for one in mine}
        ordered += [wanted.pop(known.version) for known in in_source_order(listed[name]) if known.version in wanted]
        # A latest version that was registered after the listing.
        ordered += wanted.values()
    return ordered, unmet


def candidates(version: str, pattern: str, most: int) -> Iterator[str]:
    """What the version may be called at the target: as it is, then by the suffix pattern with n = 1..most."""
    yield version
    for number in range(1, most + 1):
        yield pattern.replace("{version}", version).replace("{n}", str(number))


def check_suffix_pattern(pattern: str) -> str:
    """Raises ValueError if the pattern does not make a version of its own for each n."""
    if "{n}" not in pattern or "{version}" not in pattern:
        raise ValueError("must hold {version} and {n}, such as {version}_m{n}")
    if not _VERSION.fullmatch(pattern.replace("{version}", "9").replace("{n}", "1")):
        raise ValueError("makes versions with other characters than letters, digits, '_', '-' and '.'")
    return pattern


def migration_tags(
    *,
    workspace: str,
    subscription_id: str,
    batch: str,
    tool_version: str,
    asset_id: str,
    requested: str,
    final: str,
    on_utc: str,
) -> dict[str, str]:
    """The tags of every version that was migrated."""
    is_same = requested == final
    return {
        "migrated_from_workspace": workspace,
        "migrated_from_subscription": subscription_id,
        "migration_batch_id": batch,
        "migration_tool_version": tool_version,
        "original_asset_id": asset_id,
        "original_version": requested,
        "final_version": final,
        "collision_resolved": str(not is_same).lower(),
        "original_version_retained": str(is_same).lower(),
        "migrated_on_utc": on_utc,
    }


def _meant(wish: str, versions: Sequence[ListedVersion], latest: str | None) -> Iterator[str]:
    if wish == "latest":
        yield from [latest] if latest else []
    elif wish == "*":
        yield from (one.version for one in versions)
    elif match := _RANGE.fullmatch(wish):
        low, high = int(match[1] or 0), int(match[2] or 10**18)
        yield from (one.version for one in versions if low <= _number(one.version) <= high)


def _number(version: str) -> int:
    return int(version) if version.isascii() and version.isdigit() else -1
