"""What Microsoft Graph's answers mean, and those of the host that files are downloaded from."""

import json
from collections.abc import Mapping
from typing import Any

from shared.clients.http import retry_after_s
from shared.errors import (
    AccessDenied,
    Authentication,
    Configuration,
    ItemError,
    MigrationError,
    NotFound,
    ServiceUnavailable,
    Throttled,
    TransientError,
    Unsupported,
)

_MALWARE = {"malwaredetected", "virusinfected", "virussuspicious", "virusdetected"}
_BLOCKED = {
    "accessrestricted", "blockedbypolicy", "blockedbydlppolicy", "dlpblocked", "downloadblocked", "itemrestricted",
    "policyviolation",
}  # fmt: skip
_LOCKED = {"resourcelocked", "locked", "itemlocked", "filelocked"}
_RESYNC = {
    "resyncrequired", "resyncapplydifferences", "resyncuploaddifferences", "resyncchangesapplydifferences",
    "resyncchangesuploaddifferences", "syncstatenotfound", "syncstateinvalid",
}  # fmt: skip
_DEPTH = 8


class FeedExpired(ItemError):
    """The change feed cannot go on from where it was asked to.

    Attributes:
        location: Where the service says that it begins again; may be empty.
    """

    default_code = "feed_expired"

    def __init__(self, detail: str, *, subject: str, location: str) -> None:
        super().__init__(detail, subject=subject)
        self.location = location


def service_codes(body: bytes) -> list[str]:
    """The error codes of an answer, in lower case, the outermost first.

    Source: Microsoft Graph, "Error responses": what is precise lies in ``innerError``, also written ``innererror``, to
    any depth, and clients should act on the innermost code that they know.
    """
    try:
        error: Any = json.loads(body).get("error")
    except (ValueError, AttributeError):
        return []
    codes = []
    for _ in range(_DEPTH):
        if not isinstance(error, dict):
            break
        code = error.get("code")
        if isinstance(code, str) and 0 < len(code) <= 80 and code.isascii() and code.replace("_", "").isalnum():
            codes.append(code.lower())
        error = next((value for name, value in error.items() if name.lower() == "innererror"), None)
    return codes


def asked_wait_s(headers: Mapping[str, str]) -> float | None:
    """Seconds for which the service asks to be left alone.

    Source: SharePoint, "Avoid getting throttled or blocked": the larger of Retry-After and RateLimit-Reset.
    """
    reset = headers.get("RateLimit-Reset", "").strip()
    asked = [retry_after_s(headers), float(reset) if reset.isascii() and reset.isdigit() and len(reset) < 6 else None]
    return max((one for one in asked if one is not None), default=None)


def has_malware(headers: Mapping[str, str]) -> bool:
    """Whether an answer, be it a success, is flagged as infected (MS-WDVMODUU, ``X-Virus-Infected``)."""
    return "X-Virus-Infected" in headers


def malware_detected(subject: str) -> ItemError:
    return ItemError("SharePoint found malware in the file and does not give it out", code="malware_detected",
                     subject=subject)  # fmt: skip


def classify(status: int, headers: Mapping[str, str], body: bytes, subject: str) -> MigrationError:
    """Turn a failed answer into an error. What is refused for one item is an ItemError; the caller knows the rest."""
    codes = service_codes(body)
    known = set(codes)
    said = f"{status} {codes[-1] if codes else ''}".rstrip()
    if known & _RESYNC or status == 410:
        return FeedExpired(
            f"the change feed begins again ({said})", subject=subject, location=headers.get("Location", "")
        )
    if known & _MALWARE or (status >= 400 and has_malware(headers)):
        return malware_detected(subject)
    if known & _BLOCKED:
        return AccessDenied(f"a policy of the organisation blocks the download ({said}); have the policy's owner "
                            "release the file", code="blocked_by_policy", subject=subject)  # fmt: skip
    if status == 423 or known & _LOCKED:
        return ItemError(f"somebody has locked the file ({said}); retry-failed once it is released",
                         code="locked", subject=subject)  # fmt: skip
    if status in (429, 509) or "activitylimitreached" in known:
        return Throttled(f"Graph asks to slow down ({said})", subject=subject, retry_after_s=asked_wait_s(headers))
    if status in (408, 500, 502, 503, 504) or "servicenotavailable" in known:
        return ServiceUnavailable(f"Graph answers {said}", subject=subject, retry_after_s=asked_wait_s(headers))
    if status == 401:
        return _unauthenticated(body, said, subject)
    if status == 403:
        return AccessDenied(f"the identity may not read it ({said})", subject=subject)
    if status == 404:
        return NotFound(f"not there ({said})", code="source_gone", subject=subject)
    if status in (400, 405, 406, 409, 422, 501) and codes:
        return Unsupported(f"Graph does not give this item ({said})", code="refused_by_source", subject=subject)
    return Configuration(
        f"an answer that Microsoft Graph does not give ({said}); check GRAPH_URL, which is https://graph.microsoft.com "
        "for the public cloud",
        code="wrong_endpoint",
        subject="GRAPH_URL",
    )


class AddressRefused(Exception):
    """A pre-authenticated address is not taken (any more): another one may be.

    Attributes:
        error: What it means if that one is not taken either.
    """

    def __init__(self, error: ItemError) -> None:
        super().__init__(error.code)
        self.error = error


def classify_download(status: int, headers: Mapping[str, str], body: bytes, subject: str) -> Exception:
    """Turn a failed answer of the host that files are downloaded from into an error, or into AddressRefused.

    That host is SharePoint's, not Graph's: its refusals have codes where they are about the file, and none where the
    address has merely expired (401, 403 or 404 alike).
    """
    error = classify(status, headers, body, subject)
    if error.code in ("malware_detected", "blocked_by_policy", "locked") or isinstance(error, TransientError):
        return error
    if status == 404:
        return AddressRefused(NotFound("the source file is gone (404)", code="source_gone", subject=subject))
    if status in (401, 403):
        said = f"SharePoint refuses the download ({status}) at an address that Graph has just given"
        return AddressRefused(AccessDenied(said, code="download_refused", subject=subject))
    return ServiceUnavailable(f"the download answers {status}", subject=subject)


def not_granted(subject: str) -> Authentication:
    """What a 403 means where it is not about one item but about the whole source, with what to grant."""
    return Authentication(
        "the identity may not read the site or library (403); give its app the permission Sites.Selected, and a read "
        "grant on the site (POST /sites/<site id>/permissions with the role read, by an administrator)",
        code="permission_denied",
        subject=subject,
    )


def _unauthenticated(body: bytes, said: str, subject: str) -> Authentication:
    # Graph has one code for every fault of a token; only its sentence tells them apart.
    text = body[:4096].decode("utf-8", "replace").lower()
    if "audience" in text:
        return Authentication(
            "the token is for another service; correct GRAPH_SCOPE, which is https://graph.microsoft.com/.default "
            "for the public cloud",
            code="token_audience",
            subject=subject,
        )
    if "expired" in text or "lifetime" in text:
        return Authentication("the token has expired", code="token_expired", subject=subject)
    return Authentication(
        f"Graph rejects the token ({said}); check GRAPH_SCOPE, and that the credential's tenant is the site's",
        code="token_rejected",
        subject=subject,
    )
