"""Route templates of HTTP triggers: literals, parameters with constraints, optional and catch-all parameters.

Source: https://learn.microsoft.com/aspnet/core/fundamentals/routing (the subset that Functions routes may use)
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from urllib.parse import unquote

from local.host.settings import HostError

_PARAMETER = re.compile(r"\{(\*{0,2})(\w+)((?::(?:\([^)]*\)|[^(}=?])+(?:\([^)]*\))?)*)(?:=([^}?]*))?(\?)?\}")
_CONSTRAINT = re.compile(r":(\w+)(?:\((.*?)\))?(?=:|$)")


def _parses(convert: Callable[[str], object]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            convert(text)
        except ValueError:
            return False
        return True

    return check


_INTEGER = re.compile(r"[+-]?\d{1,19}")
_PLAIN: Final[dict[str, Callable[[str], bool]]] = {
    "int": lambda text: bool(_INTEGER.fullmatch(text)) and -(2**31) <= int(text) < 2**31,
    "long": lambda text: bool(_INTEGER.fullmatch(text)) and -(2**63) <= int(text) < 2**63,
    "bool": lambda text: text.lower() in {"true", "false"},
    "datetime": _parses(datetime.fromisoformat),
    "decimal": _parses(float),
    "double": _parses(float),
    "float": _parses(float),
    "guid": _parses(uuid.UUID),
    "alpha": lambda text: bool(re.fullmatch("[A-Za-z]*", text)),
    "required": bool,
}


def _constraint(name: str, argument: str | None, template: str) -> Callable[[str], bool]:
    if argument is None and name in _PLAIN:
        return _PLAIN[name]
    if argument is not None:
        if name == "regex":
            # Braces and brackets are doubled in a template, as elsewhere they delimit parameters.
            pattern = re.compile(re.sub(r"([{}\[\]])\1", r"\1", argument), re.IGNORECASE)
            return lambda text: bool(pattern.search(text))
        numbers = [int(part) for part in re.findall(r"-?\d+", argument)]
        if name == "length" and numbers:
            return lambda text: numbers[0] <= len(text) <= numbers[-1]
        if name == "minlength" and numbers:
            return lambda text: len(text) >= numbers[0]
        if name == "maxlength" and numbers:
            return lambda text: len(text) <= numbers[0]
        is_integer = _PLAIN["long"]
        if name == "min" and numbers:
            return lambda text: is_integer(text) and int(text) >= numbers[0]
        if name == "max" and numbers:
            return lambda text: is_integer(text) and int(text) <= numbers[0]
        if name == "range" and len(numbers) == 2:
            return lambda text: is_integer(text) and numbers[0] <= int(text) <= numbers[1]
    raise HostError(f"The route '{template}' has the constraint '{name}', which is not one of the platform's.")


@dataclass(frozen=True, slots=True)
class Route:
    """A compiled template.

    Attributes:
        template: As the app wrote it, with the prefix.
        precedence: Routes are tried in ascending order: literals first, then constrained parameters, then free
            ones, catch-alls last.
    """

    template: str
    precedence: tuple[int, ...]
    _pattern: re.Pattern[str]
    _constraints: dict[str, list[Callable[[str], bool]]] = field(default_factory=dict)
    _defaults: dict[str, str] = field(default_factory=dict)

    def match(self, raw_path: str) -> dict[str, str] | None:
        """The route parameters of a still percent-encoded path, or None when it does not match.

        An optional parameter that is not there is left out.
        """
        found = self._pattern.fullmatch(raw_path.strip("/"))
        if found is None:
            return None
        values = {name: unquote(value) for name, value in found.groupdict().items() if value}
        for name, checks in self._constraints.items():
            if name in values and not all(check(values[name]) for check in checks):
                return None
        return self._defaults | values


def compile_route(template: str) -> Route:
    """Compile a template such as ``api/items/{id:guid?}`` or ``files/{*rest}``.

    Raises:
        HostError: The template is not one.
    """
    pattern = ""
    precedence: list[int] = []
    constraints: dict[str, list[Callable[[str], bool]]] = {}
    defaults: dict[str, str] = {}
    for segment in _split(template):
        parameters = list(_PARAMETER.finditer(segment))
        separator = "/" if pattern else ""
        if not parameters:
            if "{" in segment or "}" in segment:
                raise HostError(f"The route '{template}' has braces that do not form a parameter in '{segment}'.")
            pattern += separator + re.escape(segment)
            precedence.append(0)
            continue
        body, end, is_optional = "", 0, False
        for parameter in parameters:
            stars, name, constraint_text, default, mark = parameter.groups()
            body += re.escape(segment[end : parameter.start()])
            end = parameter.end()
            checks = [
                _constraint(item.group(1), item.group(2), template) for item in _CONSTRAINT.finditer(constraint_text)
            ]
            if checks:
                constraints[name] = checks
            if default is not None:
                defaults[name] = default
            body += f"(?P<{name}>.*)" if stars else f"(?P<{name}>[^/]+?)"
            is_optional = is_optional or bool(mark or stars) or default is not None
            precedence.append(5 if stars else 2 if checks else 3)
        body += re.escape(segment[end:])
        pattern += f"(?:{separator}{body})?" if is_optional else separator + body
    return Route(template, tuple(precedence), re.compile(pattern, re.IGNORECASE), constraints, defaults)


def _split(template: str) -> Iterable[str]:
    """The segments of a template; a slash inside braces, as a regex constraint may hold, does not divide."""
    return [part for part in re.split(r"/(?![^{]*\})", template.strip("/")) if part]
