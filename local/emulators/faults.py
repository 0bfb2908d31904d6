"""The fault plan: which calls go wrong, how, and how often; the same seed gives the same sequence for each rule.

A plan is a list of rules in YAML or JSON, read strictly. Every rule counts and draws for itself, so adding a rule
does not move the others. A ``latency`` rule only waits; of the other rules the first that fires decides.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from local.emulators.estate import ConfigurationMistake

Operation = Literal[
    "create",
    "append",
    "flush",
    "append_flush",
    "read",
    "properties",
    "list",
    "rename",
    "delete",
    "token",
    "site",
    "delta",
    "item",
    "content",
    "download",
    "batch",
    "any",
]
Fault = Literal[
    "latency",
    "throttle",
    "unavailable",
    "reset_before",
    "reset_after",
    "expired_token",
    "corrupt_body",
    "short_body",
    "server_error",
    "capacity_paused",
    "resync",
]


class FaultRule(BaseModel):
    """One rule.

    Attributes:
        service: whose calls.
        operation: kind of call; a Blob write counts as what it does (Put Blob is ``append_flush``). Graph has ``site``,
            ``list``, ``delta``, ``item``, ``content`` (the redirect), ``download`` (what it leads to) and ``batch``.
        path: glob over ``<workspace>/<item>.<Type>/Files/...`` by names (``*`` crosses slashes), or over the URL
            path for fabric and entra, over ``<workspace>/data/<name>/versions/<version>`` and the like for azureml,
            over ``<account>/<container>/<blob>`` for azureml_blob, over ``<path of the site>/<library>/...`` for graph.
        fault: ``resync`` is Graph's answer to a delta token that it gave up, 410; ``capacity_paused`` is Fabric's.
        probability: chance that a matching call is hit, drawn from the seeded sequence of this rule.
        after: matching calls let through first.
        times: most hits; None has no end.
        retry_after_s: for throttle and unavailable; the header carries whole seconds, rounded up.
        latency_ms: wait before the effect, with any fault.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    service: Literal["onelake", "fabric", "entra", "graph", "azureml", "azureml_blob"] = "onelake"
    operation: Operation = "any"
    path: str = "*"
    fault: Fault
    probability: float = Field(default=1.0, ge=0, le=1)
    after: int = Field(default=0, ge=0)
    times: int | None = Field(default=None, ge=0)
    retry_after_s: float | None = Field(default=None, ge=0)
    latency_ms: float = Field(default=0, ge=0)


_RULES = TypeAdapter(list[FaultRule])


def parse_rules(document: Any) -> list[FaultRule]:
    """Validates a parsed plan.

    Raises:
        ConfigurationMistake: names the rule (counted from 1) and the key.
    """
    if isinstance(document, dict) and set(document) == {"rules"}:
        document = document["rules"]
    try:
        return _RULES.validate_python(document if document is not None else [])
    except ValidationError as error:
        details = error.errors()[0]
        where = [str(part + 1) if isinstance(part, int) else f"key {part!r}" for part in details["loc"]]
        place = f"rule {', '.join(where)}" if where else "the document"
        raise ConfigurationMistake(f"The fault plan is wrong at {place}: {details['msg']}") from error


def load_rules(path: Path) -> list[FaultRule]:
    """Reads a plan from YAML or JSON.

    Raises:
        ConfigurationMistake: the file cannot be read or a rule is wrong.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationMistake(f"The fault plan {path} cannot be read: {error}") from error
    return parse_rules(document)


@dataclass(slots=True)
class _Counted:
    rule: FaultRule
    chance: random.Random
    seen: int = 0
    hits: int = 0

    def fires(self, service: str, operation: str, path: str) -> bool:
        rule = self.rule
        if rule.service != service or rule.operation not in ("any", operation) or not fnmatchcase(path, rule.path):
            return False
        self.seen += 1
        drawn = self.chance.random()
        if self.seen <= rule.after or (rule.times is not None and self.hits >= rule.times):
            return False
        if drawn >= rule.probability:
            return False
        self.hits += 1
        return True


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to one call: a wait, and at most one fault."""

    delay_s: float
    rule: FaultRule | None


_UNHARMED = Verdict(0.0, None)


class FaultPlan:
    """The rules in force, with their counters."""

    def __init__(self, rules: Sequence[FaultRule], seed: int) -> None:
        self._seed = seed
        self._counted: list[_Counted] = []
        self.replace(rules)

    def replace(self, rules: Sequence[FaultRule]) -> None:
        """Puts other rules in force; every counter and sequence begins anew."""
        self._counted = [
            _Counted(rule, random.Random(f"{self._seed}:{position}"))  # noqa: S311 - repeatable, not secret
            for position, rule in enumerate(rules)
        ]

    def hits(self) -> list[int]:
        """Returns how often each rule has fired, in order."""
        return [counted.hits for counted in self._counted]

    def draw(self, service: str, operation: str, path: str) -> Verdict:
        """Decides one call."""
        if not self._counted:
            return _UNHARMED
        delay_ms = 0.0
        for counted in self._counted:
            if counted.fires(service, operation, path):
                delay_ms += counted.rule.latency_ms
                if counted.rule.fault != "latency":
                    return Verdict(delay_ms / 1000, counted.rule)
        return Verdict(delay_ms / 1000, None)
