"""Imports the app and reads what it registered: names, triggers, bindings, user functions.

The checks are those of the Python worker's indexing, so that an app that loads here loads there.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azure.functions import meta
from azure.functions.decorators.function_app import FunctionRegister

from local.host.settings import HostError

HTTP_TRIGGER = "httpTrigger"
TIMER_TRIGGER = "timerTrigger"
ORCHESTRATION_TRIGGER = "orchestrationTrigger"
ACTIVITY_TRIGGER = "activityTrigger"
_ENTITY_TRIGGER = "entityTrigger"
_DURABLE_CLIENT = "durableClient"
_HTTP_OUTPUT = "http"
_TRIGGERS = (HTTP_TRIGGER, TIMER_TRIGGER, ORCHESTRATION_TRIGGER, ACTIVITY_TRIGGER)


@dataclass(frozen=True, slots=True)
class IndexedFunction:
    """One function of the app.

    Attributes:
        name: Its function name; an orchestrator or activity is called by it.
        call: The registered callable; takes keyword arguments named as the bindings.
        is_async: Whether `call` is a coroutine function.
        trigger: The trigger's binding, with the keys of ``function.json``.
        client_hubs: Parameter name of each durable client binding, with the task hub it names or None.
        wants_context: Whether it has a parameter ``context`` for `azure.functions.Context`.
        directory: The app's directory.
    """

    name: str
    call: Callable[..., Any]
    is_async: bool
    trigger: Mapping[str, Any]
    client_hubs: Mapping[str, str | None]
    wants_context: bool
    directory: str

    @property
    def trigger_type(self) -> str:
        return str(self.trigger["type"])

    @property
    def trigger_param(self) -> str:
        return str(self.trigger["name"])


@dataclass(frozen=True, slots=True)
class AppIndex:
    """The functions that are enabled, by kind and name."""

    functions: Sequence[IndexedFunction]
    disabled: Sequence[str]
    orchestrators: Mapping[str, IndexedFunction]
    activities: Mapping[str, IndexedFunction]

    def of_type(self, trigger_type: str) -> list[IndexedFunction]:
        return [function for function in self.functions if function.trigger_type == trigger_type]


def binding_converter(binding: str) -> Any:
    """What turns the platform's data into a function's argument, or its result back, for one type of binding."""
    registry: Any = meta.get_binding_registry
    return registry().get(binding)


def load_app(app_dir: Path) -> AppIndex:
    """Import ``function_app.py`` of `app_dir` and index it.

    Raises:
        HostError: There is no app, or it uses something that this host does not serve.
        Exception: Whatever the app's own code raises on import.
    """
    script = os.environ.get("PYTHON_SCRIPT_FILE_NAME", "function_app.py")
    if not (app_dir / script).is_file():
        raise HostError(f"There is no {script} in {app_dir}: give the app's directory with --app.")
    sys.path.insert(0, str(app_dir))
    module = importlib.import_module(Path(script).stem)
    found = {id(value): value for value in vars(module).values() if isinstance(value, FunctionRegister)}
    if len(found) != 1:
        raise HostError(
            f"{script} defines {len(found)} top-level function apps: it needs exactly one FunctionApp or DFApp."
        )
    (app,) = found.values()
    indexed = [_index(function, app_dir) for function in app.get_functions()]
    disabled = [function.name for function in indexed if _is_disabled(function.name)]
    enabled = [function for function in indexed if function.name not in disabled]
    return AppIndex(
        functions=enabled,
        disabled=disabled,
        orchestrators=_by_durable_name(enabled, ORCHESTRATION_TRIGGER, "orchestration"),
        activities=_by_durable_name(enabled, ACTIVITY_TRIGGER, "activity"),
    )


def _by_durable_name(functions: list[IndexedFunction], trigger: str, key: str) -> dict[str, IndexedFunction]:
    return {str(f.trigger.get(key) or f.name): f for f in functions if f.trigger_type == trigger}


def _is_disabled(name: str) -> bool:
    return os.environ.get(f"AzureWebJobs.{name}.Disabled", "").strip().lower() in {"1", "true"}


def _index(function: Any, app_dir: Path) -> IndexedFunction:
    name = str(function.get_function_name())
    bindings: list[dict[str, Any]] = [json.loads(raw) for raw in function.get_raw_bindings()]
    trigger: dict[str, Any] | None = None
    client_hubs: dict[str, str | None] = {}
    for binding in bindings:
        kind = str(binding["type"])
        if kind in _TRIGGERS:
            trigger = binding
        elif kind == _DURABLE_CLIENT:
            client_hubs[str(binding["name"])] = binding.get("taskHub")
        elif kind == _ENTITY_TRIGGER:
            raise HostError(f"Function '{name}' is a durable entity: this host does not serve entities.")
        elif kind != _HTTP_OUTPUT or binding["name"] != "$return":
            raise HostError(f"Function '{name}' has a binding of type '{kind}', which this host does not serve.")
    if trigger is None:
        raise HostError(f"Function '{name}' has no trigger that this host serves.")
    call = function.get_user_function()
    declared = set(inspect.signature(call).parameters)
    bound = {str(trigger["name"]), *client_hubs}
    wants_context = "context" in declared and "context" not in bound
    unbound = declared - bound - {"context"}
    if unbound or bound - declared:
        raise HostError(
            f"Function '{name}' takes the parameters ({', '.join(sorted(declared))}) but its bindings are named"
            f" ({', '.join(sorted(bound))}): give both the same names."
        )
    return IndexedFunction(
        name=name,
        call=call,
        is_async=inspect.iscoroutinefunction(call),
        trigger=trigger,
        client_hubs=client_hubs,
        wants_context=wants_context,
        directory=str(app_dir),
    )
