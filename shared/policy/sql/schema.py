r"""What has become of a table's columns since they were last written, and whether the job's policy allows it.

======== ===============================================================================================================
policy   what it does with a table that is in the lake already
======== ===============================================================================================================
create   the source may not differ from the lake
evolve   new columns are added, and are null in rows written before; wider types are taken over; columns that are gone
         stay, and are null in rows written from now on; a narrower type goes on in the lake's wider one, and a name
         that differs only in case keeps the lake's spelling. Anything else fails
strict   the source may differ neither from the lake nor from what it was at the last run
======== ===============================================================================================================

A table that is written anew from its beginning (``reset``) takes the source's columns whatever the policy is; what
differs is reported all the same.

In a Delta table, column names hold none of the characters `` ,;{}()\n\t=`` (Delta protocol, "Column Names"; Spark
refuses them without column mapping): each run of them becomes one underscore. Delta and Spark do not tell names
apart by case, so two names that then differ in nothing else are refused. Parquet files keep the names as they are.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from shared.policy.sql.types import decimal_of

DELETED, DELETED_AT = "_deleted", "_deleted_at"
VALID_FROM, VALID_TO, IS_CURRENT = "_valid_from", "_valid_to", "_is_current"
SOFT_DELETE_COLUMNS = (DELETED, DELETED_AT)
HISTORY_COLUMNS = (VALID_FROM, VALID_TO, IS_CURRENT)
QUARANTINE_COLUMNS = ("_rules", "_reason")
"""Beside the columns of a quarantined row: which rules it breaks, and in words why it was kept apart."""

NULL, NOT_NULL = "null", "not null"

Policy = Literal["create", "evolve", "strict"]
Kind = Literal["added", "removed", "renamed", "widened", "narrowed", "changed", "case", "nullable"]

_UNFIT_FOR_DELTA = re.compile(r"[ ,;{}()\n\t=]+")
_INTEGERS = ("int16", "int32", "int64")
_FLOATS = ("float", "double")


class Column(Protocol):
    """What ``ports.tables.LakeColumn`` looks like from here."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...

    @property
    def type(self) -> str: ...

    @property
    def nullable(self) -> bool: ...


C = TypeVar("C", bound=Column)


@dataclass(frozen=True, slots=True)
class Difference:
    """One of a table, for the plan and the report.

    Attributes:
        kind: ``renamed`` is a guess (a column is gone, and one of its type stands in its place) and is told beside
            the ``removed`` and ``added`` that it is made of.
        column: As the source has it, or had it.
        was: Type, name or nullability as the lake has it; empty for an added column.
        now: The same in the source; empty for a removed column.
        sentence: For a person.
        fails: Whether the policy refuses it.
    """

    kind: Kind
    column: str
    was: str
    now: str
    sentence: str
    fails: bool


@dataclass(frozen=True, slots=True)
class SchemaPlan(Generic[C]):
    """Columns of the table in the lake after the next commit, and what differs.

    Attributes:
        columns: All of them, in the lake's order with new ones at the end; without those that we add ourselves.
        names: From each source column's name to its name in the lake.
        differences: In the source's order.
        failures: Sentences with a remedy; where there are any, nothing is to be moved.
    """

    columns: tuple[C, ...]
    names: Mapping[str, str]
    differences: tuple[Difference, ...]
    failures: tuple[str, ...]

    @property
    def changes_lake(self) -> bool:
        return any(one.kind in ("added", "removed", "widened", "nullable") for one in self.differences)


def plan_schema(
    source: Sequence[C],
    lake: Sequence[C] | None,
    *,
    policy: Policy,
    delta: bool,
    last: Sequence[C] | None = None,
    key: Collection[str] = (),
    reserved: Collection[str] = (),
    anew: bool = False,
) -> SchemaPlan[C]:
    """Compare the source with the lake before anything is moved.

    Args:
        source: Lake columns of the source as it is now, under the source's names.
        lake: Columns of the table in the lake, None where there is no table; those of soft deletes and history are
            left out of account.
        policy: The job's ``schema``.
        delta: Whether Delta's rules for names hold.
        last: Lake columns of the source at the last run, under the source's names, where that is known.
        key: The table's key, under the source's names, where rows are merged by it.
        reserved: Names that this run adds to the table, see :func:`reserved_names`.
        anew: All rows are written again, so that the lake need not keep anything.
    """
    names, failures = lake_names([column.name for column in source], delta=delta, reserved=reserved)
    renamed = [replace(column, name=names[column.name]) for column in source]
    if lake is None:
        return SchemaPlan(tuple(renamed), names, (), tuple(failures))
    kept = [column for column in lake if column.name not in (*SOFT_DELETE_COLUMNS, *HISTORY_COLUMNS)]
    comparison = _Comparison(source, names, kept, last, key=lake_names(key, delta=delta)[0].values())
    comparison.run()
    found = [replace(one, fails=not anew and _is_refused(one, policy, comparison.fatal)) for one in comparison.found]
    failures += [_refusal(one, policy) for one in found if one.fails]
    columns = renamed if anew else comparison.columns
    after = names if anew else comparison.names
    return SchemaPlan(tuple(columns), after, tuple(found), tuple(failures))


def lake_names(
    names: Iterable[str], *, delta: bool, reserved: Collection[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Names of columns in the lake by their names in the source, and sentences on those that cannot be had."""
    found = {name: (_UNFIT_FOR_DELTA.sub("_", name) if delta else name) for name in names}
    failures = []
    taken: dict[str, str] = {}
    ours = {name.casefold() for name in reserved}
    remedy = "leave it out with exclude_columns, or read the table by a query that gives it another name"
    for name, target in found.items():
        folded = target.casefold()
        if folded in ours:
            failures.append(f"column {name!r} has the name of one that is added to the table; {remedy}")
        other = taken.setdefault(folded if delta else target, name)
        if other != name:
            why = "differ only in case" if found[other] != target else f"would both be {target!r} in the lake"
            failures.append(f"columns {other!r} and {name!r} {why}, which Delta cannot hold; of {name!r}, {remedy}")
    return found, failures


def reserved_names(
    *, changes: Collection[str] = (), disposition: str = "", deletes: str = "", rules: int = 0, quarantine: bool = False
) -> frozenset[str]:
    """Names that a run puts beside the table's own columns, and so cannot be theirs.

    Args:
        changes: CHANGE_COLUMNS, where the table is read with change tracking or CDC.
        disposition: Of the job's ``write``.
        deletes: Of the job's ``write``.
        rules: How many rules the database evaluates row by row.
        quarantine: Whether rows may be kept apart.
    """
    names = {*changes, *(f"_rule_{number}" for number in range(rules))}
    if disposition == "history":
        names.update(HISTORY_COLUMNS)
    if disposition in ("merge", "history") and deletes == "soft":
        names.update(SOFT_DELETE_COLUMNS)
    if quarantine:
        names.update(QUARANTINE_COLUMNS)
    return frozenset(names)


def is_wider(wide: str, narrow: str) -> bool:
    """Whether ``wide`` is another type that holds every value of ``narrow`` without loss."""
    for chain in (_INTEGERS, _FLOATS):
        if wide in chain and narrow in chain:
            return chain.index(wide) > chain.index(narrow)
    ours, theirs = decimal_of(wide), decimal_of(narrow)
    if ours is None or theirs is None or ours == theirs:
        return False
    return ours[1] >= theirs[1] and ours[0] - ours[1] >= theirs[0] - theirs[1]


class _Comparison(Generic[C]):
    """Fills ``columns``, ``names``, ``found`` and ``fatal`` (columns whose difference no policy can take)."""

    def __init__(
        self,
        source: Sequence[C],
        names: Mapping[str, str],
        lake: Sequence[C],
        last: Sequence[C] | None,
        *,
        key: Collection[str],
    ) -> None:
        self._source, self._lake = source, lake
        self._last = None if last is None else {column.name: column for column in last}
        self._key = {name.casefold() for name in key}
        self.columns: list[C] = list(lake)
        self.names = dict(names)
        self.found: list[Difference] = []
        self.fatal: set[str] = set()

    def run(self) -> None:
        exact = {column.name: place for place, column in enumerate(self._lake)}
        folded = {column.name.casefold(): place for place, column in enumerate(self._lake)}
        places: dict[int, C] = {}
        added: list[C] = []
        for column in self._source:
            target = self.names[column.name]
            place = exact.get(target)
            if place is None and folded.get(target.casefold()) not in (None, *places):
                place = self._by_case(column, folded[target.casefold()])
            if place is None:
                added.append(column)
            else:
                places[place] = column
                self._same_name(column, place)
        removed = [place for place in range(len(self._lake)) if place not in places]
        for column in added:
            self._added(column)
        for place in removed:
            self._removed(place)
        self._renamed(added, removed)

    def _by_case(self, column: C, place: int) -> int | None:
        """The lake's column that has this name but for case, unless the source has one of the very name as well."""
        theirs = self._lake[place].name
        if theirs in (self.names[other.name] for other in self._source):
            return None
        sentence = f"column {theirs!r} is now spelled {column.name!r}; the lake keeps its spelling"
        self._tell("case", column.name, theirs, column.name, sentence)
        self.names[column.name] = theirs
        return place

    def _same_name(self, column: C, place: int) -> None:
        lake = self.columns[place]
        name, was, now = column.name, lake.type, column.type
        if was == now:
            pass
        elif is_wider(now, was):
            self._tell("widened", name, was, now, f"column {name!r} became wider, from {was} to {now}")
            self.columns[place] = lake = replace(lake, type=now)
        elif is_wider(was, now):
            if self._was_so(column):
                return
            sentence = f"column {name!r} became narrower, {now} in place of {was}; the lake keeps {was}"
            self._tell("narrowed", name, was, now, sentence)
        else:
            self._tell("changed", name, was, now, f"column {name!r} was {was} and is now {now}")
            self.fatal.add(name)
        if column.nullable and not lake.nullable:
            self._tell("nullable", name, NOT_NULL, NULL, f"column {name!r} may be null now")
            self.columns[place] = replace(lake, nullable=True)
        elif not column.nullable and self._last is not None and name in self._last and self._last[name].nullable:
            self._tell(
                "nullable", name, NULL, NOT_NULL, f"column {name!r} is never null now; the lake goes on as it is"
            )

    def _was_so(self, column: C) -> bool:
        return self._last is not None and column.name in self._last and self._last[column.name].type == column.type

    def _added(self, column: C) -> None:
        target = self.names[column.name]
        sentence = f"column {column.name!r} ({column.type}) is new; it is null in rows written before"
        self._tell("added", column.name, "", column.type, sentence)
        self.columns.append(replace(column, name=target, nullable=True))

    def _removed(self, place: int) -> None:
        lake = self.columns[place]
        is_key = lake.name.casefold() in self._key
        if self._last is not None and lake.nullable and not is_key and not self._was_in_source(lake.name):
            # Told when it went.
            return
        sentence = f"column {lake.name!r} is gone; it stays in the lake and is null in rows written from now on"
        self._tell("removed", lake.name, lake.type, "", sentence)
        if is_key:
            self.fatal.add(lake.name)
        self.columns[place] = replace(lake, nullable=True)

    def _was_in_source(self, lake_name: str) -> bool:
        return self._last is not None and any(
            _UNFIT_FOR_DELTA.sub("_", name).casefold() == lake_name.casefold() or name == lake_name
            for name in self._last
        )

    def _renamed(self, added: Sequence[C], removed: Sequence[int]) -> None:
        order = [column.name for column in self._source]
        for column in added:
            place = order.index(column.name)
            alike = [gone for gone in removed if gone == place and self._lake[gone].type == column.type]
            if alike:
                was = self._lake[alike[0]].name
                sentence = (
                    f"column {was!r} looks renamed to {column.name!r}; the lake takes it for one that is gone and one "
                    "that is new"
                )
                self._tell("renamed", column.name, was, column.name, sentence)

    def _tell(self, kind: Kind, column: str, was: str, now: str, sentence: str) -> None:
        self.found.append(Difference(kind, column, was, now, sentence, fails=False))


def _is_refused(one: Difference, policy: Policy, fatal: Collection[str]) -> bool:
    if policy == "evolve":
        return one.kind in ("changed", "removed") and one.column in fatal
    # What the lake takes without a change is no difference from the lake.
    return one.kind != "renamed" and not (policy == "create" and one.now == NOT_NULL)


def _refusal(one: Difference, policy: Policy) -> str:
    if policy == "evolve":
        if one.kind == "removed":
            return (
                f"column {one.column!r} is gone and belongs to the key by which rows are merged; give the table "
                "another key and name it in reset, so that it is written anew"
            )
        return (
            f"column {one.column!r} was {one.was} and is now {one.now}, which schema: evolve cannot take over; name "
            "the table in reset, so that it is written anew"
        )
    return (
        f"{one.sentence.partition(';')[0]}, and schema: {policy} takes no difference; choose schema: evolve, or name "
        "the table in reset, so that it is written anew"
    )
