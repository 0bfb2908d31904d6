"""Quality rules: which apply to a table, which rows break them, and what becomes of those.

The database evaluates ``not_null``, ``unique``, ``range``, ``foreign_key`` and ``sql`` beside each row, ``unique`` and
``foreign_key`` over the whole table whatever part of it is read. ``regex`` is evaluated here (RE2, as Arrow has it; the
whole value must match), ``freshness`` once for a table. Null breaks ``not_null`` alone. Of a deleted row nothing but
its key is known, so it breaks no rule.

========== =============================================================================================================
action     rows that break the rule
========== =============================================================================================================
warn       are written like others, and counted
quarantine are kept beside the table, with the columns ``_rules`` (a JSON list of names) and ``_reason``; where changes
           are merged, the lake keeps the row as it was before
fail       are counted, and nothing of the table becomes visible
========== =============================================================================================================

Quarantined rows are a Parquet table of their own: ``_quarantine`` in the folder of a Parquet table, which readers pass
over, and ``Files/_quarantine/…`` for a Delta table, since nothing but the table itself belongs below ``Tables/``. They
have the columns of the source, and a folder for each run that kept any.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared.errors import Configuration, ItemError, NotFound, Unsupported
from shared.model.sql_job import QualityRule, SqlJob
from shared.policy.quantities import show_duration
from shared.policy.sql.names import TableName, is_wish_for_many, matching
from shared.policy.sql.schema import QUARANTINE_COLUMNS
from shared.ports.tables import (
    OPERATION_COLUMN,
    RULE_COLUMN,
    LakeColumn,
    RowRule,
    TableDatabase,
    TableSession,
    TableShape,
)

QUARANTINE_FOLDER = "_quarantine"
_BY_DATABASE: Final = ("not_null", "unique", "range", "foreign_key", "sql")
# The others have nothing but columns, which are looked up.
_TRIED: Final = ("range", "foreign_key", "sql")
_SHOWN_BROKEN = 3


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the job as it applies to one table; ``columns`` are the source's, as its catalog has them.

    ``not_applicable`` says why it does not: a pattern's tables need not all have a column. ``is_of_many``: it speaks of
    a pattern's tables.
    """

    name: str
    rule: str
    action: str
    columns: tuple[str, ...] = ()
    minimum: float | str | None = None
    maximum: float | str | None = None
    pattern: str | None = None
    references: tuple[str, str] | None = None
    reference_columns: tuple[str, ...] = ()
    sql: str | None = None
    max_age_s: float | None = None
    not_applicable: str = ""
    is_of_many: bool = False

    @property
    def is_by_row(self) -> bool:
        return self.rule != "freshness" and not self.not_applicable

    @property
    def is_by_database(self) -> bool:
        return self.rule in _BY_DATABASE and not self.not_applicable

    def compiled(self) -> RowRule:
        """For :class:`~shared.ports.tables.Selection`; of a rule that the database evaluates."""
        assert self.rule in _BY_DATABASE
        return RowRule(
            rule=cast(Any, self.rule),
            columns=self.columns,
            minimum=self.minimum,
            maximum=self.maximum,
            references=TableName(*self.references) if self.references else None,
            reference_columns=self.reference_columns,
            sql=self.sql,
        )

    def reason(self) -> str:
        """What is wrong with a row that breaks it."""
        columns = ", ".join(self.columns)
        if self.rule == "not_null":
            return f"{columns} is null"
        if self.rule == "unique":
            return f"{columns} is there more than once"
        if self.rule == "range":
            bounds = (("at least", self.minimum), ("at most", self.maximum))
            said = [f"{words} {_plain(limit)}" for words, limit in bounds if limit is not None]
            return f"{columns} is not {' and '.join(said)}"
        if self.rule == "regex":
            return f"{columns} does not match {self.pattern}"
        if self.rule == "foreign_key":
            assert self.references is not None
            return f"{columns} is not in {TableName(*self.references)}"
        return f"not {self.sql}"


# -- which rules -------------------------------------------------------------------------------------------------------


def check_patterns(job: SqlJob) -> None:
    """Raises Configuration for a pattern that Arrow does not take; to be called before anything is read."""
    for number, rule in enumerate(job.quality):
        if rule.pattern is None:
            continue
        try:
            # By itself as well: closing a bracket that it did not open would pass unnoticed inside of ours.
            for pattern in (rule.pattern, _whole(rule.pattern)):
                pc.match_substring_regex(pa.array([""]), pattern)
        except pa.ArrowInvalid as error:
            why = str(error).partition(":")[2].strip()
            raise Configuration(
                f"quality[{number}].pattern: RE2 does not take {rule.pattern!r} ({why}); "
                "look-around and back-references are not to be had",
                code="bad_pattern",
                subject=f"quality[{number}].pattern",
            ) from None


def rules_of(
    job: SqlJob,
    applies: Callable[[str], bool],
    shape: TableShape,
    tables: Callable[[], Collection[TableName]],
    default_schema: str,
) -> list[Rule]:
    """The job's rules for one table, in the job's order.

    Args:
        job: The job.
        applies: Whether the name or pattern of a rule means this table.
        shape: The table, with the columns that are read.
        tables: The database's tables; asked only where a rule refers to one.
        default_schema: What a bare name means.

    Raises:
        Unsupported: a rule that names this very table speaks of a column or table that is not there, or not such.
    """
    found: list[Rule] = []
    for number, rule in enumerate(job.quality):
        if not applies(rule.table):
            continue
        name = rule.name or _default_name(rule, number)
        if any(name == other.name for other in found):
            # Verdicts and quarantined rows tell rules apart by name.
            name = f"{name} ({number + 1})"
        try:
            found.append(_rule_for(rule, name, shape, tables, default_schema))
        except Unsupported as error:
            if not is_wish_for_many(rule.table):
                raise
            found.append(Rule(name, rule.rule, rule.action, tuple(rule.columns), not_applicable=error.detail))
    return found


def tried(rules: Sequence[Rule], database: TableDatabase, shape: TableShape) -> list[Rule]:
    """The rules, after the database was asked whether it takes those that have more than names of known columns.

    Raises:
        Unsupported: it does not take one that names this very table.
    """
    found: list[Rule] = []
    while any(rule.rule in _TRIED for rule in rules[len(found) :]):
        # Of its own, since some databases end the transaction in which a statement fails.
        with database.sessions(1, consistent=False, for_table=shape) as (session,):
            for rule in rules[len(found) :]:
                why = _refusal(rule, session, shape)
                found.append(replace(rule, not_applicable=why) if why else rule)
                if why:
                    break
    return [*found, *rules[len(found) :]]


def _refusal(rule: Rule, session: TableSession, shape: TableShape) -> str:
    """Why the database does not take a rule; empty where it does, or where there is nothing to ask."""
    if rule.rule not in _TRIED or rule.not_applicable:
        return ""
    try:
        session.try_rule(shape, rule.compiled())
    except (NotFound, Unsupported) as error:
        why = f"the rule {rule.name} does not fit {shape.table}: {error.detail}"
        if rule.references is not None:
            names = ", ".join(rule.reference_columns or rule.columns)
            why += f"; reference_columns has to name what {', '.join(rule.columns)} is compared with in "
            why += f"{TableName(*rule.references)} (now {names})"
        if not rule.is_of_many:
            raise Unsupported(why, code="rule_unfit") from error
        return why
    return ""


def to_documents(rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """As JSON, for what was decided about a table."""
    return [asdict(rule) for rule in rules]


def from_documents(documents: Sequence[Mapping[str, Any]]) -> list[Rule]:
    return [
        Rule(**{
            **document,
            "columns": tuple(document["columns"]),
            "references": tuple(document["references"]) if document["references"] else None,
            "reference_columns": tuple(document["reference_columns"]),
        })
        for document in documents
    ]  # fmt: skip


def _rule_for(
    rule: QualityRule,
    name: str,
    shape: TableShape,
    tables: Callable[[], Collection[TableName]],
    default_schema: str,
) -> Rule:
    columns = _columns(rule, name, shape)
    references = None
    if rule.references is not None:
        there = matching(rule.references, tables(), default_schema)
        if len(there) != 1:
            raise Unsupported(
                f"the rule {name} refers to {rule.references}, which is {'no' if not there else 'more than one'} table "
                "that the identity may see",
                code="reference_not_found",
            )
        references = (there[0].schema, there[0].name)
    if rule.rule == "regex":
        first = {column.name: column.lake[0] for column in shape.columns}
        for column in columns:
            if column not in first or first[column].type != "string":
                found = first[column].type if column in first else "not read"
                raise Unsupported(
                    f"the rule {name} needs text, and {column} of {shape.table} is {found}", code="rule_unfit"
                )
        columns = tuple(first[column].name for column in columns)
    return Rule(
        name, rule.rule, rule.action, columns, rule.min, rule.max, rule.pattern, references,
        tuple(rule.reference_columns), rule.sql, rule.max_age, is_of_many=is_wish_for_many(rule.table),
    )  # fmt: skip


def _columns(rule: QualityRule, name: str, shape: TableShape) -> tuple[str, ...]:
    """Names as the catalog has them; a rule may speak of columns that the job leaves out."""
    others = shape.facts.get("column_types", {})
    assert isinstance(others, Mapping)
    known = [*(column.name for column in shape.columns), *others]
    folded = {column.casefold(): column for column in reversed(known)}
    found = []
    for column in rule.columns:
        there = column if column in known else folded.get(column.casefold())
        if there is None:
            raise Unsupported(
                f"the rule {name} speaks of the column {column}, which {shape.table} does not have",
                code="rule_column_not_found",
            )
        found.append(there)
    return tuple(found)


def _default_name(rule: QualityRule, number: int) -> str:
    return f"{rule.rule} {', '.join(rule.columns)}" if rule.columns else f"{rule.rule} {number + 1}"


# -- rows --------------------------------------------------------------------------------------------------------------


class RowChecks:
    """Splits the batches of a selection by rules, and counts. Not thread-safe; nothing of a batch is kept.

    Give ``compiled`` to the selection; its batches then carry a column for each.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = [rule for rule in rules if rule.is_by_row]
        self._numbers = {rule.name: number for number, rule in enumerate(r for r in rules if r.is_by_database)}
        self.compiled = tuple(rule.compiled() for rule in rules if rule.is_by_database)
        self._broken = [0] * len(self._rules)
        self._rows = 0
        self._quarantined = 0

    def split(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
        """Rows for the table, and rows for quarantine with QUARANTINE_COLUMNS; both without columns of rules."""
        self._rows += batch.num_rows
        kept = [name for name in batch.schema.names if not _is_rule_column(name, len(self.compiled))]
        rows = batch.select(kept)
        if not self._rules:
            return rows, None
        alive = _alive(batch)
        broken = np.stack([self._breaks(rule, batch) & alive for rule in self._rules], axis=1)
        for place, count in enumerate(broken.sum(axis=0).tolist()):
            self._broken[place] += count
        held = np.array([rule.action == "quarantine" for rule in self._rules])
        apart = broken[:, held].any(axis=1)
        if not apart.any():
            return rows, None
        self._quarantined += int(apart.sum())
        bad = rows.filter(pa.array(apart))
        for name, texts in zip(QUARANTINE_COLUMNS, self._texts(broken[apart][:, held], held), strict=True):
            bad = bad.append_column(name, texts)
        return rows.filter(pa.array(~apart)), bad

    def result(self) -> dict[str, Any]:
        """What :func:`verdict_of` adds up, as JSON."""
        broken = {rule.name: count for rule, count in zip(self._rules, self._broken, strict=True)}
        return {"rows": self._rows, "quarantined": self._quarantined, "broken": broken}

    def _breaks(self, rule: Rule, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        if rule.rule != "regex":
            column = batch.column(RULE_COLUMN.format(self._numbers[rule.name]))
            return _flags(column)
        assert rule.pattern is not None
        broken = np.zeros(batch.num_rows, np.bool_)
        for name in rule.columns:
            broken |= _flags(pc.invert(pc.match_substring_regex(batch.column(name), _whole(rule.pattern))))
        return broken

    def _texts(self, broken: npt.NDArray[np.bool_], held: npt.NDArray[np.bool_]) -> tuple[pa.Array, pa.Array]:
        """Names and reasons of each row; few combinations for many rows."""
        rules = [rule for rule, is_held in zip(self._rules, held, strict=True) if is_held]
        combinations, places = np.unique(broken, axis=0, return_inverse=True)
        chosen = [[rule for rule, breaks in zip(rules, one, strict=True) if breaks] for one in combinations]
        index = pa.array(places.reshape(-1))
        names = pa.array([json.dumps([rule.name for rule in one], ensure_ascii=False) for one in chosen], pa.string())
        reasons = pa.array(["; ".join(rule.reason() for rule in one) for one in chosen], pa.string())
        return names.take(index), reasons.take(index)


def quarantine_columns(columns: Sequence[LakeColumn]) -> tuple[LakeColumn, ...]:
    """Of quarantined rows: the source's lake columns, any of which may be null, and what was wrong."""
    return (
        *(LakeColumn(column.name, column.type) for column in columns),
        *(LakeColumn(name, "string") for name in QUARANTINE_COLUMNS),
    )


def quarantine_path(table_path: str) -> str:
    """The folder of a table's quarantined rows, in the lakehouse, by the table's own."""
    root, _, below = table_path.partition("/")
    if root == "Tables":
        return f"Files/{QUARANTINE_FOLDER}/{below}"
    return f"{table_path}/{QUARANTINE_FOLDER}"


def _plain(limit: float | str) -> str:
    return str(int(limit)) if isinstance(limit, float) and limit.is_integer() else str(limit)


def _is_rule_column(name: str, count: int) -> bool:
    return any(name == RULE_COLUMN.format(number) for number in range(count))


def _alive(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    place = batch.schema.get_field_index(OPERATION_COLUMN)
    if place < 0:
        return np.ones(batch.num_rows, np.bool_)
    return _flags(pc.not_equal(batch.column(place), "delete"))


def _flags(values: pa.Array) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = values.fill_null(False).to_numpy(zero_copy_only=False)
    return found


def _whole(pattern: str) -> str:
    return rf"\A(?:{pattern})\z"


# -- verdicts ----------------------------------------------------------------------------------------------------------


def ages_of(session: TableSession, shape: TableShape, rules: Sequence[Rule]) -> dict[str, float | None]:
    """Of each rule of freshness, seconds since the newest value; blocks."""
    return {
        rule.name: session.age_s(shape, rule.columns[0])
        for rule in rules
        if rule.rule == "freshness" and not rule.not_applicable
    }


def verdict_of(
    rules: Sequence[Rule], results: Sequence[Mapping[str, Any]], ages: Mapping[str, float | None]
) -> dict[str, Any]:
    """For the record of a table: ``passed``, ``warned``, ``quarantined`` or ``failed``, and why, rule by rule.

    Args:
        rules: Of the table.
        results: Of :meth:`RowChecks.result`, one for each slice.
        ages: Of :func:`ages_of`.
    """
    if not rules:
        return {"verdict": "not checked"}
    documents = []
    for rule in rules:
        document: dict[str, Any] = {
            "rule": rule.name, "kind": rule.rule, "columns": list(rule.columns), "action": rule.action, "broken": 0,
        }  # fmt: skip
        if rule.not_applicable:
            documents.append({**document, "verdict": "not applicable", "detail": rule.not_applicable})
            continue
        if rule.rule == "freshness":
            broken, detail = _staleness(rule, ages.get(rule.name))
        else:
            broken = sum(one["broken"][rule.name] for one in results)
            detail = f"{broken:,} rows: {rule.reason()}" if broken else ""
        outcomes = {"warn": "warned", "quarantine": "quarantined", "fail": "failed"}
        documents.append(
            {**document, "broken": broken, "verdict": outcomes[rule.action] if broken else "passed", "detail": detail}
        )
    order = ("failed", "quarantined", "warned", "passed")
    verdicts = {document["verdict"] for document in documents}
    return {
        "verdict": next((one for one in order if one in verdicts), "not applicable"),
        "rows": sum(one["rows"] for one in results),
        "quarantined": sum(one["quarantined"] for one in results),
        "rules": documents,
    }


def raise_if_failed(verdict: Mapping[str, Any]) -> None:
    """Raises ItemError, code ``quality_failed``, where a rule with ``action: fail`` is broken."""
    failed = [one for one in verdict.get("rules", ()) if one["verdict"] == "failed"]
    if failed:
        said = [f"{one['rule']}: {one['detail']}" for one in failed[:_SHOWN_BROKEN]]
        more = f"; and {len(failed) - _SHOWN_BROKEN} more rules" if len(failed) > _SHOWN_BROKEN else ""
        raise ItemError(
            f"quality rules with action: fail are broken, so nothing was committed: {'; '.join(said)}{more}",
            code="quality_failed",
        )


def warnings_of(verdict: Mapping[str, Any], *, merged: bool, finds_deleted: bool = False) -> list[str]:
    """Sentences for the report.

    Args:
        verdict: Of :func:`verdict_of`.
        merged: Changes are merged into what is there.
        finds_deleted: Rows that were not read are taken for deleted, were it not for those that were quarantined.
    """
    found = [
        f"quality rule {one['rule']}: {one['detail']}"
        for one in verdict.get("rules", ())
        if one["verdict"] in ("warned", "quarantined", "not applicable")
    ]
    if merged and verdict.get("quarantined"):
        found.append("of a changed row that was quarantined, the lake keeps the state before")
    if finds_deleted and verdict.get("quarantined"):
        found.append(
            "rows that were deleted in the source are still in the lake, since a row that was quarantined could not be "
            "told from them; reconcile: repair finds them by their keys"
        )
    return found


def _staleness(rule: Rule, age_s: float | None) -> tuple[int, str]:
    assert rule.max_age_s is not None
    if age_s is None:
        return 1, f"{rule.columns[0]} has no value"
    if age_s <= rule.max_age_s:
        return 0, ""
    return 1, f"the newest {rule.columns[0]} is {show_duration(age_s)} old, {show_duration(rule.max_age_s)} are allowed"
