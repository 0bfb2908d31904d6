"""A storage account for all tests of a session: Azurite with TLS and tokens, filled through Microsoft's own SDK."""

from __future__ import annotations

import itertools
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.storage.blob import BlobServiceClient, ContainerClient, LinearRetry

from local.emulators.certificates import Certificates
from local.emulators.launch import RunningEmulators
from shared.clients.blob import BlobAccount, open_account
from shared.clients.credentials import TokenSource
from tests.support.azurite import ACCOUNT, KEY, AzuriteMissing, running
from tests.support.platform import Platform

_CONTAINERS = itertools.count(1)


class StorageAccount:
    """Attributes: ``url`` as a job gives it; ``key``; ``ca_bundle`` to trust, which is the emulators' own."""

    def __init__(self, url: str, ca_bundle: str) -> None:
        self.url = url
        self.key = KEY
        self.name = ACCOUNT
        self.ca_bundle = ca_bundle
        self.sdk = BlobServiceClient(
            url,
            credential={"account_name": ACCOUNT, "account_key": KEY},
            connection_verify=ca_bundle,
            api_version="2023-11-03",
            # Azurite closes what is idle for five seconds, perhaps just when it is used again.
            retry_policy=LinearRetry(backoff=1, retry_total=2, random_jitter_range=0),
        )

    def make_container(self) -> ContainerClient:
        """One that only this test uses."""
        return self.sdk.create_container(f"c{next(_CONTAINERS):04d}")


@contextmanager
def beside(platform: Platform, folder: Path) -> Iterator[StorageAccount]:
    """An account for the time of a ``with`` that a platform's worker, by key, and its OneLake can read."""
    tls = platform.emulators.root / "state" / "tls"
    certificates = Certificates(tls / "ca.pem", tls / "server-chain.pem", tls / "server-key.pem")
    try:
        with running(folder, certificates) as connection:
            url = dict(part.split("=", 1) for part in connection.split(";") if part)["BlobEndpoint"]
            account = StorageAccount(url, str(certificates.ca))
            credential = json.dumps({"kind": "account_key", "account_key": KEY})
            platform.restart_host(BLOB_SOURCE_HOSTS="127.0.0.1", CREDENTIAL_SOURCE=credential)
            with account.sdk:
                yield account
    except AzuriteMissing as missing:
        pytest.skip(str(missing))


class _Unsigned:
    """A credential whose tokens Azurite takes."""

    def __init__(self, **claims: Any) -> None:
        self._claims = claims

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        now_s = int(time.time())
        claims = {
            "aud": "https://storage.azure.com", "iss": "https://sts.windows.net/tenant/", "iat": now_s - 60,
            "nbf": now_s - 60, "exp": now_s + 3600, **self._claims,
        }  # fmt: skip
        parts = [{"alg": "none", "typ": "JWT"}, claims]
        encoded = [urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
        return AccessToken(".".join([*encoded, "c2ln"]), now_s + 3600)

    async def close(self) -> None: ...


def unsigned_tokens(**claims: Any) -> TokenSource:
    """Tokens of an identity provider that Azurite believes in."""
    return TokenSource(lambda: _Unsigned(**claims), "https://storage.azure.com/.default", time.time)


@pytest.fixture(scope="session")
def storage(emulators: RunningEmulators, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageAccount]:
    """Served under the emulators' certificates, so that their OneLake can copy from it."""
    tls = emulators.root / "state" / "tls"
    certificates = Certificates(tls / "ca.pem", tls / "server-chain.pem", tls / "server-key.pem")
    try:
        with running(tmp_path_factory.mktemp("storage"), certificates) as connection:
            url = dict(part.split("=", 1) for part in connection.split(";") if part)["BlobEndpoint"]
            account = StorageAccount(url, str(certificates.ca))
            with account.sdk:
                yield account
    except AzuriteMissing as missing:
        pytest.skip(str(missing))


MakeAccount = Callable[..., BlobAccount]


@pytest.fixture
async def make_account(storage: StorageAccount) -> Any:
    """Clients of the account: by key unless told otherwise; closed with the test."""
    made: list[BlobAccount] = []

    def make(url: str = "", tokens: TokenSource | None = None, **fields: str) -> BlobAccount:
        given = fields or ({"kind": "managed_identity"} if tokens else {"kind": "account_key", "account_key": KEY})

        def no_tokens() -> TokenSource:
            raise AssertionError("this kind of credential has no tokens")

        made.append(
            open_account(
                url or storage.url, given, (lambda: tokens) if tokens else no_tokens, ca_bundle=storage.ca_bundle
            )
        )
        return made[-1]

    yield make
    for account in made:
        await account.close()


__all__ = ["MakeAccount", "StorageAccount", "beside", "make_account", "storage", "unsigned_tokens"]
