"""Where data goes, of whatever kind it is."""

from pydantic import Field, field_validator

from shared.model.spec import CredentialName, Spec
from shared.policy.paths import check_target_path


class LakeTarget(Spec):
    """Where the data goes: a folder of a lakehouse."""

    workspace: str = Field(min_length=1, max_length=256, description="display name or GUID")
    lakehouse: str = Field(min_length=1, max_length=256, description="display name or GUID")
    path: str = Field(min_length=1, description="a folder below Files/ or Tables/")
    credential: CredentialName = "onelake"

    @field_validator("workspace", "lakehouse")
    @classmethod
    def _trimmed(cls, value: str) -> str:
        # GUIDs copied from a portal bring quotes and line ends along, which the service answers with a puzzling 400.
        trimmed = value.strip().strip("'\"").strip()
        if not trimmed or any(ord(c) < 0x20 for c in trimmed) or "/" in trimmed:
            raise ValueError("must be a display name or a GUID, without slashes or control characters")
        return trimmed

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        return check_target_path(value)
