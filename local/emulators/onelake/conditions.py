"""Conditional headers.

At most one, but for the two pairs the Blob service documents: If-None-Match with If-Modified-Since (the first
decides) and If-Match with If-Unmodified-Since (the first decides). Everything else is 400
MultipleConditionHeadersNotSupported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from local.emulators.onelake.errors import ServiceError

_NAMES = ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since")
_PAIRS = ({"if-none-match", "if-modified-since"}, {"if-match", "if-unmodified-since"})


def _tags(value: str) -> set[str]:
    return {tag.strip().removeprefix("W/").strip('"') for tag in value.split(",")}


def _seconds(value: str) -> float:
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        raise ServiceError("InvalidHeaderValue") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of one request; `failure` judges them."""

    match: set[str] | None = None
    none_match: set[str] | None = None
    modified_since_s: float | None = None
    unmodified_since_s: float | None = None

    @property
    def must_be_absent(self) -> bool:
        """Whether the request carries ``If-None-Match: *``."""
        return self.none_match is not None and "*" in self.none_match

    def failure(self, etag: str | None, modified_s: float) -> bool:
        """Returns whether the state (etag without quotes, None if nothing is there) breaks a condition."""
        if self.match is not None:
            return etag is None or not ("*" in self.match or etag in self.match)
        if self.none_match is not None:
            return etag is not None and ("*" in self.none_match or etag in self.none_match)
        if etag is None:
            return False
        if self.modified_since_s is not None and int(modified_s) <= self.modified_since_s:
            return True
        return self.unmodified_since_s is not None and int(modified_s) > self.unmodified_since_s


UNCONDITIONAL = Conditions()


def read_conditions(headers: Mapping[str, str], prefix: str = "") -> Conditions:
    """Reads the conditional headers of a request, or of a rename's source with prefix ``x-ms-source-``.

    Raises:
        ServiceError: too many at once, or one that cannot be read.
    """
    present = {name: headers[prefix + name] for name in _NAMES if prefix + name in headers}
    if not present:
        return UNCONDITIONAL
    if len(present) > 1 and set(present) not in _PAIRS:
        raise ServiceError("MultipleConditionHeadersNotSupported")
    if any(not value for value in present.values()):
        raise ServiceError("InvalidHeaderValue")
    return Conditions(
        match=_tags(present["if-match"]) if "if-match" in present else None,
        none_match=_tags(present["if-none-match"]) if "if-none-match" in present else None,
        modified_since_s=_seconds(present["if-modified-since"]) if "if-modified-since" in present else None,
        unmodified_since_s=_seconds(present["if-unmodified-since"]) if "if-unmodified-since" in present else None,
    )
