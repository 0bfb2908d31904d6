"""Credentials that a storage account itself hands out."""

import json

import pytest

from shared.clients.credentials import build_credential, parse_credential
from shared.errors import Configuration


def parse(**fields: str) -> dict[str, str]:
    return parse_credential("CREDENTIAL_SOURCE", json.dumps(fields))


def test_a_key_and_a_sas() -> None:
    assert parse(kind="account_key", account_key="c2VjcmV0") == {"kind": "account_key", "account_key": "c2VjcmV0"}
    for given in ("sv=2024&sp=rl&sig=x%2By", "?sv=2024&sp=rl&sig=x%2By", " ?sv=2024&sp=rl&sig=x%2By\n"):
        assert parse(kind="sas", sas_token=given)["sas_token"] == "sv=2024&sp=rl&sig=x%2By"


@pytest.mark.parametrize("fields", [
    {"kind": "account_key"}, {"kind": "account_key", "account_key": ""},
    {"kind": "account_key", "account_key": "SECRET no base64"}, {"kind": "sas"},
    {"kind": "sas", "sas_token": "SECRET"}, {"kind": "sas", "sas_token": "sv=1&sp=SECRET"},
    {"kind": "sas", "sas_token": "sig=SECRET"}, {"kind": "sas", "sas_token": "https://a.b/c?sv=1&sig=SECRET"},
    {"kind": "sas", "sas_token": "sv=1&sig=SECRET\r\nHost: x"}, {"kind": "sas", "sas_token": "sv=1&sig=SECRET#x"},
    {"kind": "sas", "sas_token": "sv=1&sig=x", "account_key": "SECRET"},
])  # fmt: skip
def test_what_is_none_is_refused_without_being_repeated(fields: dict[str, str]) -> None:
    with pytest.raises(Configuration) as caught:
        parse(**fields)
    assert caught.value.subject == "CREDENTIAL_SOURCE"
    assert "SECRET" not in caught.value.detail


@pytest.mark.parametrize("fields", [
    {"kind": "account_key", "account_key": "c2VjcmV0"}, {"kind": "sas", "sas_token": "sv=1&sig=SECRET"},
])  # fmt: skip
def test_they_open_nothing_but_blob_sources(fields: dict[str, str]) -> None:
    with pytest.raises(Configuration, match="opens a blob source and nothing else") as caught:
        build_credential(parse(**fields), None)
    assert fields.get("account_key", "SECRET") not in caught.value.detail
