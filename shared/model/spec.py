"""What all job specs have in common."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shared.policy.quantities import parse_bytes


class Spec(BaseModel):
    """Base of all specs: an unknown field is an error, since it is most often a misspelt one."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_max_length=4096)


def _bytes(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, str) else value


ByteSize = Annotated[int, BeforeValidator(_bytes, json_schema_input_type=int | str)]
JobName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$", description="names the job and its ledger")]
CredentialName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
