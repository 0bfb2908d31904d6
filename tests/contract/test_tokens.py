"""Tokens: renewed before they end, once for everybody, and never told to anybody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError, ServiceResponseError

from local.emulators.launch import RunningEmulators
from shared.clients.credentials import STORAGE_SCOPE, TokenSource, parse_credential
from shared.errors import Authentication, Configuration, ConnectionLost, TransientError
from tests.support.emulated import MakeTokens


class Provider:
    """An identity provider with a clock of its own; ``fail`` is raised by the next requests."""

    def __init__(self, life_s: float = 3600.0) -> None:
        self.now_s = 1_000_000.0
        self.life_s = life_s
        self.asked = 0
        self.built = 0
        self.closed = 0
        self.fail: Exception | None = None
        self.source = TokenSource(self._build, STORAGE_SCOPE, lambda: self.now_s)

    def _build(self) -> Any:
        self.built += 1
        return self

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        assert scopes == (STORAGE_SCOPE,)
        self.asked += 1
        number = self.asked
        await asyncio.sleep(0)
        if self.fail is not None:
            raise self.fail
        return AccessToken(f"token {number}", int(self.now_s + self.life_s))

    async def close(self) -> None:
        self.closed += 1


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_request_for_all_callers() -> None:
    provider = Provider()
    tokens = await asyncio.gather(*(provider.source.get() for _ in range(50)))
    assert {token.token for token in tokens} == {"token 1"}
    assert provider.asked == 1


@pytest.mark.parametrize(("life_s", "renewed_after_s"), [(3600, 3300), (601, 301), (600, 300), (60, 30), (2, 1)])
async def test_renewed_in_the_background_five_minutes_before_the_end_or_at_half_life(
    life_s: float, renewed_after_s: float
) -> None:
    provider = Provider(life_s)
    await provider.source.get()
    provider.now_s += renewed_after_s - 0.5
    await provider.source.get()
    await settle()
    assert provider.asked == 1
    provider.now_s += 0.5
    assert (await provider.source.get()).token == "token 1", "nobody waits while the old one is good"
    await settle()
    assert provider.asked == 2
    assert (await provider.source.get()).token == "token 2"


async def test_an_expired_token_is_waited_for() -> None:
    provider = Provider()
    await provider.source.get()
    provider.now_s += 3600
    assert (await provider.source.get()).token == "token 2"


async def test_a_failure_in_the_background_harms_nobody_and_the_next_caller_tries_again() -> None:
    provider = Provider()
    await provider.source.get()
    provider.now_s += 3400
    provider.fail = ServiceRequestError("no route")
    assert (await provider.source.get()).token == "token 1"
    await settle()
    assert (await provider.source.get()).token == "token 1"
    await settle()
    provider.fail = None
    await provider.source.get()
    await settle()
    assert (await provider.source.get()).token == "token 4"
    provider.now_s += 3600
    provider.fail = ServiceRequestError("no route")
    with pytest.raises(ConnectionLost):
        await provider.source.get()


async def test_a_caller_that_is_cancelled_takes_the_refresh_from_nobody() -> None:
    provider = Provider()
    first, second = asyncio.create_task(provider.source.get()), asyncio.create_task(provider.source.get())
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).token == "token 1"


async def test_a_rejected_token_is_replaced_through_a_fresh_credential_and_the_old_one_is_closed() -> None:
    provider = Provider()
    token = await provider.source.get()
    provider.source.reject(token)
    provider.source.reject(token)
    tokens = await asyncio.gather(*(provider.source.get() for _ in range(10)))
    assert {one.token for one in tokens} == {"token 2"}
    provider.source.reject(token)
    assert (await provider.source.get()).token == "token 2", "the rejection of an old token says nothing of the new one"
    assert (provider.built, provider.closed) == (2, 1)
    await provider.source.close()
    assert provider.closed == 2


class _Response:
    reason, headers = "", {}

    def __init__(self, status_code: int) -> None:
        self.status_code = status_code

    def text(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (ClientAuthenticationError("AADSTS7000215: Invalid client secret. Trace ID: x"), Authentication),
        (ClientAuthenticationError("busy", response=_Response(503)), TransientError),  # type: ignore[arg-type]
        (ClientAuthenticationError("busy", response=_Response(429)), TransientError),  # type: ignore[arg-type]
        (ServiceRequestError("no route"), ConnectionLost),
        (ServiceResponseError("half an answer"), ConnectionLost),
        (TimeoutError(), ConnectionLost),
    ],
)
async def test_what_is_final_and_what_is_not(failure: Exception, error: type[Exception]) -> None:
    provider = Provider()
    provider.fail = failure
    with pytest.raises(error) as caught:
        await provider.source.get()
    assert "Trace ID" not in str(caught.value)


async def test_the_real_credential_against_the_issuer(emulators: RunningEmulators, make_tokens: MakeTokens) -> None:
    token = await make_tokens().get()
    assert token.token.count(".") == 2
    for fields, said in (
        ({"client_secret": "wrong-but-secret"}, "AADSTS7000215"),
        ({"client_id": "00000000-0000-4000-8000-000000000000"}, "AADSTS700016"),
        ({"tenant_id": "00000000-0000-4000-8000-000000000000"}, "AADSTS90002"),
    ):
        with pytest.raises(Authentication) as caught:
            await make_tokens(**fields).get()
        assert said in caught.value.detail
        assert "wrong-but-secret" not in caught.value.detail
        assert caught.value.code == "token_refused"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{secret", "is not JSON"),
        ("[]", "kind must be one of"),
        ('{"kind": "password"}', "kind must be one of"),
        ('{"kind": "client_secret", "tenant_id": "t", "client_id": "c"}', "client_secret is missing"),
        (
            '{"kind": "client_secret", "tenant_id": "t", "client_id": "c", "client_secret": ""}',
            "client_secret is missing",
        ),
        ('{"kind": "managed_identity", "secret": "hush"}', "secret is not a field"),
    ],
)
def test_credentials_that_are_not_well_formed(value: str, said: str) -> None:
    with pytest.raises(Configuration) as caught:
        parse_credential("CREDENTIAL_X", value)
    assert said in caught.value.detail
    assert "CREDENTIAL_X" in caught.value.detail
    assert "hush" not in caught.value.detail
