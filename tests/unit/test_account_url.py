"""Which hosts a job can make the worker talk to."""

import pytest

from shared.errors import Configuration
from shared.policy.account_url import account_name, check_account_url, check_container_name, check_host_patterns
from shared.settings import Settings, read_settings

AZURE = Settings.blob_source_hosts
LOCAL = (*AZURE, "127.0.0.1:10000", "[::1]", "azurite", "storage.example.org:8443")


@pytest.mark.parametrize(
    ("url", "checked", "account"),
    [
        ("https://acct.blob.core.windows.net", "https://acct.blob.core.windows.net", "acct"),
        ("https://ACCT.Blob.Core.Windows.NET:443/", "https://acct.blob.core.windows.net", "acct"),
        ("https://acct.privatelink.blob.core.windows.net", "https://acct.privatelink.blob.core.windows.net", "acct"),
        ("https://onelake.blob.fabric.microsoft.com", "https://onelake.blob.fabric.microsoft.com", "onelake"),
        ("http://127.0.0.1:10000/devstoreaccount1", "http://127.0.0.1:10000/devstoreaccount1", "devstoreaccount1"),
        ("https://127.0.0.1:10000/devstoreaccount1/", "https://127.0.0.1:10000/devstoreaccount1", "devstoreaccount1"),
        ("https://[::1]:7/acct", "https://[::1]:7/acct", "acct"),
        ("https://azurite:10000/acct", "https://azurite:10000/acct", "acct"),
        ("https://storage.example.org:8443", "https://storage.example.org:8443", "storage"),
    ],
)
def test_what_is_listed_is_allowed(url: str, checked: str, account: str) -> None:
    assert check_account_url(url, LOCAL) == checked
    assert check_account_url(checked, LOCAL) == checked
    assert account_name(checked) == account


@pytest.mark.parametrize("url", [
    "", "acct", "//acct.blob.core.windows.net", "ftp://acct.blob.core.windows.net", "file:///etc/passwd",
    "http://acct.blob.core.windows.net",
    "https://acct.blob.core.windows.net.evil.org", "https://evilblob.core.windows.net", "https://blob.core.windows.net",
    "https://.blob.core.windows.net", "https://169.254.169.254", "https://169.254.169.254/acct", "https://10.0.0.1/acct",
    "http://169.254.169.254/metadata", "https://localhost/acct", "https://2130706433/acct", "https://0x7f.1/acct",
    "https://acct.blob.core.windows.net:8080", "https://127.0.0.1:10001/acct", "https://127.0.0.1:10000",
    "https://127.0.0.1:10000/a/b", "https://127.0.0.1:10000/../x", "https://acct.blob.core.windows.net/container",
    "http://azurite:10000/acct", "https://storage.example.org", "https://storage.example.org:8444",
    "https://user@acct.blob.core.windows.net", "https://acct.blob.core.windows.net@evil.org",
    "https://evil.org\\@acct.blob.core.windows.net", "https://evil.org#.blob.core.windows.net",
    "https://evil.org?.blob.core.windows.net", "https://evil.org/.blob.core.windows.net",
    "https://acct.blob.core.windows.net?sv=1&sig=SECRET", "https://acct.blob.core.windows.net/#x",
    "https://acct\n.blob.core.windows.net", "https://acct .blob.core.windows.net", "https://acct.blob.core.windows.net:x",
    "https://äcct.blob.core.windows.net", "https://a%2eb.blob.core.windows.net", "https://[::1", "https://[::2]/acct",
])  # fmt: skip
def test_nothing_else_is(url: str) -> None:
    with pytest.raises(Configuration) as caught:
        check_account_url(url, LOCAL)
    assert (caught.value.subject, caught.value.code) == ("source.account_url", "source_not_allowed")
    assert "SECRET" not in caught.value.detail


def test_an_address_needs_to_be_listed() -> None:
    with pytest.raises(Configuration, match="BLOB_SOURCE_HOSTS"):
        check_account_url("https://127.0.0.1:10000/devstoreaccount1", AZURE)


def test_containers() -> None:
    for name in ("abc", "a-b-9", "$web", "a1b2c3d4-0001-4000-8000-00000000000a", "x" * 63):
        assert check_container_name(name) == name
    for name in ("", "..", ".", "ab", "x" * 64, "a/b", "A-b", "a--b", "-ab", "ab-", "a b", "a?b", "$other"):
        with pytest.raises(Configuration) as caught:
            check_container_name(name)
        assert caught.value.subject == "source.container"


@pytest.mark.parametrize("pattern", ["*", "*.net", "https://x", "a b", "*.*.x.y", "x/y", "host:", "*foo.bar.net"])
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(Configuration) as caught:
        check_host_patterns("BLOB_SOURCE_HOSTS", [pattern])
    assert caught.value.subject == "BLOB_SOURCE_HOSTS"


def test_the_setting() -> None:
    given = {"RUN_STORE_URL": "file:x"}
    assert read_settings(given).blob_source_hosts == AZURE
    listed = read_settings({**given, "BLOB_SOURCE_HOSTS": " 127.0.0.1:10000 , *.Example.org,"}).blob_source_hosts
    assert listed == ("127.0.0.1:10000", "*.example.org")
    with pytest.raises(Configuration, match="BLOB_SOURCE_HOSTS"):
        read_settings({**given, "BLOB_SOURCE_HOSTS": "*"})
