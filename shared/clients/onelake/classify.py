"""What OneLake's answers mean."""

import json
import re
from collections.abc import Mapping

from shared.clients.http import retry_after_s
from shared.errors import (
    AccessDenied,
    Authentication,
    CapacityPaused,
    Configuration,
    DestinationMissing,
    ItemError,
    MigrationError,
    NotFound,
    ServiceUnavailable,
    SourceChanged,
    TargetConflict,
    Throttled,
    TransientError,
    Unsupported,
)

_XML_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,80})</Code>")

# Codes of errors about copying from another account, see copying.py.
COPY_REFUSED = "copy_refused"
COPY_SOURCE_BUSY = "copy_source_busy"

# Code of the error about a range behind the end of a file.
SHORTER = "shorter_in_lake"

# 400s that say what this item's path or body has, not what the whole run has.
_ITEM_CODES = {
    "InvalidResourceName", "InvalidUri", "InvalidInput", "PathIsTooDeep", "InvalidRenameDestinationPath",
    "OperationNotAllowedOnThePath", "RequestBodyTooLarge", "OutOfRangeInput", "InvalidPropertyName",
}  # fmt: skip


def service_code(headers: Mapping[str, str], body: bytes) -> str:
    """The service's own error code, from the header or the JSON or XML body; empty if it gives none."""
    code = headers.get("x-ms-error-code", "")
    if not code and body[:1] == b"{":
        try:
            code = str(json.loads(body).get("error", {}).get("code", ""))
        except (ValueError, AttributeError):
            code = ""
    if not code and (match := _XML_CODE.search(body[:4096])):
        code = match[1].decode("ascii")
    return code if re.fullmatch(r"[A-Za-z0-9_]{0,80}", code) else ""


def classify(status: int, headers: Mapping[str, str], body: bytes, subject: str) -> MigrationError:
    """Turn a failed answer of the DFS or Blob endpoint into an error.

    Source: the error catalogue of the DFS REST API and OneLake's recorded answers.
    """
    code = service_code(headers, body)
    wait_s = retry_after_s(headers)
    said = f"{status} {code}".rstrip()
    if code in ("CannotVerifyCopySource", "SourceConditionNotMet"):
        return _copy_source(status, said, subject)
    if code in ("CapacityNotActive", "CapacityPaused"):
        return CapacityPaused(
            f"the target's Fabric capacity is paused ({said}); resume it in the Azure portal, then start again",
            subject=subject,
        )
    if status == 429 or code in ("CapacityLimitExceeded", "ServerBusy"):
        return Throttled(f"the service asks to slow down ({said})", subject=subject, retry_after_s=wait_s)
    if status in (408, 500, 502, 503, 504):
        return ServiceUnavailable(f"the service answers {said}", subject=subject, retry_after_s=wait_s)
    if status == 401:
        return _unauthenticated(body, said, subject)
    if status == 403:
        return Authentication(
            f"the identity may not write there ({said}); give it the Contributor role on the target workspace",
            code="permission_denied",
            subject=subject,
        )
    if status == 404:
        if code in ("ArtifactNotFound", "WorkspaceNotFound", "FilesystemNotFound", "ContainerNotFound"):
            return DestinationMissing(
                f"the target does not exist ({said}); check target.workspace and target.lakehouse", subject=subject
            )
        missing = "parent_missing" if code == "RenameDestinationParentPathNotFound" else None
        return NotFound(f"not there ({said})", code=missing, subject=subject)
    if status == 416:
        return TargetConflict("the file in the lake is shorter", code=SHORTER, subject=subject)
    if status == 412:
        return TargetConflict(
            "somebody else changed the file in the lake meanwhile", code="target_changed", subject=subject
        )
    if status == 409:
        return _conflict(code, said, subject)
    if code == "Md5Mismatch":
        return TransientError("a block was damaged on the way", code="block_damaged", subject=subject)
    if code == "InvalidBlockList":
        return TransientError("another upload to the same path took the blocks", code="block_list", subject=subject)
    if code == "InvalidFlushPosition":
        return TransientError("blocks are missing in the lake", code="flush_position", subject=subject)
    if code == "FriendlyNameSupportDisabled":
        return Configuration(f"the lake refuses the address ({said}); it takes GUIDs only", subject=subject)
    if code in _ITEM_CODES or status == 413:
        return ItemError(f"the lake does not take this item ({said})", code="refused_by_lake", subject=subject)
    return Configuration(
        f"an answer that OneLake's DFS endpoint does not give ({said}); "
        "check ONELAKE_DFS_URL, which is https://onelake.dfs.fabric.microsoft.com for the public cloud",
        code="wrong_endpoint",
        subject=subject,
    )


def _copy_source(status: int, said: str, subject: str) -> MigrationError:
    """What the service says of the account that it copies from; the status is then the account's, not its own.

    Source: "Blob Storage error codes" (CannotVerifyCopySource: 500, not verified in time), and answers that others
    report, with the source's status: azure-storage-azcopy issues 755 and 1433, azure-storage-python issue 720.
    """
    if status == 412:
        return SourceChanged("the source changed before the service copied it", subject=subject)
    if status in (408, 429) or status >= 500:
        # Not about the service that answers: nobody else has to wait for it.
        return TransientError(f"the service cannot read the source ({said})", code=COPY_SOURCE_BUSY, subject=subject)
    return Unsupported(f"the service does not copy from the source ({said})", code=COPY_REFUSED, subject=subject)


def unsupported_flush(error: MigrationError) -> bool:
    """Whether the service says that it does not know append with flush in one call."""
    return error.code == "wrong_endpoint" and "QueryParameter" in error.detail


def _unauthenticated(body: bytes, said: str, subject: str) -> Authentication:
    text = body[:4096].decode("utf-8", "replace").lower()
    if "audience" in text:
        return Authentication(
            "the token is for another service; OneLake takes only tokens for https://storage.azure.com/.default, "
            "so correct ONELAKE_SCOPE",
            code="token_audience",
            subject=subject,
        )
    if "issuer" in text:
        return Authentication(
            "the token comes from another tenant than the workspace's; check tenant_id of the target's credential",
            code="token_issuer",
            subject=subject,
        )
    if "expired" in text or "lifetime" in text:
        return Authentication("the token has expired", code="token_expired", subject=subject)
    if said == "401":
        # Storage names its error in a header, also where an answer to HEAD has no body; so this may be another service.
        return Authentication(
            "the service rejects the token (401) and gives none of OneLake's error codes; check ONELAKE_DFS_URL, which "
            "is https://onelake.dfs.fabric.microsoft.com for the public cloud, then the credential's tenant",
            code="token_rejected",
            subject=subject,
        )
    return Authentication(
        f"the service rejects the token ({said}); check ONELAKE_SCOPE, which is https://storage.azure.com/.default, "
        "and that the credential's tenant is the workspace's",
        code="token_rejected",
        subject=subject,
    )


def _conflict(code: str, said: str, subject: str) -> MigrationError:
    if code in ("PathAlreadyExists", "BlobAlreadyExists"):
        return TargetConflict("a file is there already", code="target_exists", subject=subject)
    if code in ("DestinationPathIsBeingDeleted", "SourcePathIsBeingDeleted"):
        return ServiceUnavailable(f"the path is being deleted ({said})", subject=subject)
    if code == "PathConflict":
        return TargetConflict("a folder and a file want the same path", code="path_conflict", subject=subject)
    if code.startswith("Lease"):
        return AccessDenied(f"the file is leased by another client ({said})", code="target_locked", subject=subject)
    return TargetConflict(f"the lake refuses the change ({said})", subject=subject)
