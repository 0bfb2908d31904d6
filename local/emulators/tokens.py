"""Access tokens: JWTs signed with a key that stays in the root, so that a restart honours the old ones.

Each service accepts its own audience only. "OneLake only supports tokens in the Storage audience"
(Microsoft's onelake-access-api page); Fabric REST wants ``https://api.fabric.microsoft.com``, Graph
``https://graph.microsoft.com``.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

import jwt

STORAGE_AUDIENCE = "https://storage.azure.com"
FABRIC_AUDIENCE = "https://api.fabric.microsoft.com"
GRAPH_AUDIENCE = "https://graph.microsoft.com"
KNOWN_AUDIENCES = frozenset(
    {
        STORAGE_AUDIENCE,
        FABRIC_AUDIENCE,
        GRAPH_AUDIENCE,
        "https://management.azure.com",
        "https://ml.azure.com",
        "https://database.windows.net",
    }
)
_REMEMBERED_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a valid token speaks for."""

    client_id: str
    expires_at_s: float


class TokenRefused(Exception):
    """A token that is not accepted; the message is the reason in the words Azure Storage uses."""


class TokenAuthority:
    """Issues and checks tokens of one tenant.

    Args:
        key: secret of at least 32 bytes.
        tenant_id: put in ``tid`` and required there.
        lifetime_s: validity of a new token, in seconds.
    """

    def __init__(self, key: bytes, tenant_id: str, lifetime_s: int) -> None:
        self._key = key
        self._tenant_id = tenant_id
        self.lifetime_s = lifetime_s
        self._checked: dict[tuple[str, str], Principal] = {}

    def issue(self, client_id: str, audience: str) -> str:
        """Returns a new signed token for the audience."""
        now_s = int(time.time())
        claims = {
            "aud": audience,
            "iss": f"https://sts.windows.net/{self._tenant_id}/",
            "iat": now_s,
            "nbf": now_s,
            "exp": now_s + self.lifetime_s,
            "tid": self._tenant_id,
            "appid": client_id,
            "oid": str(uuid.uuid5(uuid.NAMESPACE_URL, client_id)),
            "uti": uuid.uuid4().hex,
            "ver": "1.0",
        }
        return jwt.encode(claims, self._key, algorithm="HS256")

    def check(self, token: str, audience: str) -> Principal:
        """Returns whom the token speaks for.

        Raises:
            TokenRefused: bad signature, other audience, other tenant, or expired.
        """
        remembered = self._checked.get((token, audience))
        if remembered is None:
            remembered = self._decode(token, audience)
            if len(self._checked) >= _REMEMBERED_TOKENS:
                self._checked.clear()
            self._checked[token, audience] = remembered
        if remembered.expires_at_s <= time.time():
            raise TokenRefused("Lifetime validation failed. The token is expired.")
        return remembered

    def _decode(self, token: str, audience: str) -> Principal:
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=["HS256"],
                options={"verify_aud": False, "verify_exp": False, "require": ["aud", "exp", "tid", "appid"]},
            )
        except jwt.InvalidTokenError:
            raise TokenRefused("Signature validation failed. Signature verification failed.") from None
        if str(claims["aud"]).rstrip("/") != audience:
            raise TokenRefused("Audience validation failed. Audience did not match.")
        if claims["tid"] != self._tenant_id:
            raise TokenRefused("Issuer validation failed. Issuer did not match.")
        return Principal(str(claims["appid"]), float(claims["exp"]))
