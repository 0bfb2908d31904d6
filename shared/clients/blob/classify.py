"""What a storage account's answers mean to whoever reads from it."""

from collections.abc import Mapping

from shared.clients.http import Classify, retry_after_s
from shared.clients.onelake.classify import service_code
from shared.errors import (
    AccessDenied,
    Authentication,
    Configuration,
    ItemError,
    MigrationError,
    NotFound,
    ServiceUnavailable,
    SourceChanged,
    SourceMissing,
    Throttled,
    Unsupported,
)

ARCHIVED = "is in the archive tier; rehydrate it (set its tier to Hot or Cool) and start again when that is done"

_GONE_CODES = ("BlobNotFound", "PathNotFound")
_ARCHIVED_CODES = ("BlobArchived", "BlobBeingRehydrated")
_MISSING = {
    "ContainerNotFound": "the container does not exist; check source.container",
    "ContainerBeingDeleted": "the container is being deleted; check source.container",
    "FilesystemNotFound": "the container does not exist; check source.container",
    "WorkspaceNotFound": "the workspace does not exist; check source.container",
    "ArtifactNotFound": "the workspace has no such item; check source.prefix",
    "ResourceNotFound": "the account or container does not exist; check source.account_url and source.container",
    "AccountIsDisabled": "the storage account is disabled; check source.account_url",
}
# The credential is good, and this is not for it.
_NOT_ALLOWED = (
    "AuthorizationPermissionMismatch", "AuthorizationResourceTypeMismatch", "AuthorizationServiceMismatch",
    "AuthorizationProtocolMismatch", "AuthorizationSourceIPMismatch", "AuthorizationFailure",
    "InsufficientAccountPermissions", "PublicAccessNotPermitted", "KeyBasedAuthenticationNotPermitted",
)  # fmt: skip


def classifier(remedy: str) -> Classify:
    """The classifier for one account. ``remedy`` is what a refused credential needs."""

    def classify(status: int, headers: Mapping[str, str], body: bytes, subject: str) -> MigrationError:
        return _classify(status, headers, body, subject, remedy)

    return classify


def _classify(status: int, headers: Mapping[str, str], body: bytes, subject: str, remedy: str) -> MigrationError:
    """Source: "Common REST API error codes" and "Blob Storage error codes" of the Azure Storage reference."""
    code = service_code(headers, body)
    wait_s = retry_after_s(headers)
    said = f"{status} {code}".rstrip()
    if status == 429 or code == "ServerBusy":
        return Throttled(f"the source account asks to slow down ({said})", subject=subject, retry_after_s=wait_s)
    if status in (408, 500, 502, 503, 504):
        return ServiceUnavailable(f"the source account answers {said}", subject=subject, retry_after_s=wait_s)
    if code in _MISSING:
        return SourceMissing(f"{_MISSING[code]} ({said})", subject="source")
    if code in _ARCHIVED_CODES:
        return Unsupported(f"{ARCHIVED} ({said})", code="archived", subject=subject)
    if status in (401, 403) or code in _NOT_ALLOWED:
        return _refused(code, said, body, subject, remedy)
    if status == 412:
        return SourceChanged("the source blob is no longer the version that was listed", subject=subject)
    if status == 416:
        return SourceChanged("the source blob became shorter while it was read", subject=subject)
    if status == 404 and code in _GONE_CODES:
        return NotFound("the source blob is gone", code="source_gone", subject=subject)
    if code.startswith("BlobUsesCustomerSpecifiedEncryption"):
        return Unsupported(
            "is encrypted with a key that only its writer has (customer-provided key); copy it to a blob without one",
            code="customer_key", subject=subject,
        )  # fmt: skip
    if status == 409 or code in ("InvalidUri", "InvalidResourceName"):
        return ItemError(f"the source blob cannot be read ({said})", code="source_unreadable", subject=subject)
    return Configuration(
        f"an answer that Azure Blob Storage does not give here ({said}); check source.account_url, source.container "
        "and source.prefix",
        code="source_endpoint",
        subject="source.account_url",
    )


def _refused(code: str, said: str, body: bytes, subject: str, remedy: str) -> MigrationError:
    text = body[:4096].decode("utf-8", "replace").lower()
    if "token is expired" in text or "token has expired" in text:
        return Authentication("the token has expired", code="token_expired", subject=subject)
    if code == "InvalidAuthenticationInfo":
        return Authentication(
            f"the source account rejects the token ({said}); check that the credential's tenant is the account's",
            code="token_rejected",
            subject=subject,
        )
    if code == "AuthorizationFailure":
        remedy = f"see whether the account's firewall lets this app through; else {remedy}"
    if code in _NOT_ALLOWED:
        return AccessDenied(f"the source credential may not read this ({said}); {remedy}", subject=subject)
    return Authentication(
        f"the source account refuses the credential ({said}); {remedy}",
        code="source_credential_refused",
        subject="source.credential",
    )
