"""Which storage accounts a blob source may name.

The URL comes with a job, from whoever may start one, and the worker sends requests and a credential to it. So it goes
to hosts that the operator has listed and to no other, and never unencrypted over a network.
"""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from shared.errors import Configuration

SUBJECT = "source.account_url"

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_PATTERN = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?|\[[0-9a-f:]+\](:[0-9]{1,5})?")
# Account names of Azure Storage: 3 to 24 lower-case letters and digits.
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_PLAIN = re.compile(r"[!-~]+")
_DEFAULT_PORTS = {"https": 443, "http": 80}


def check_host_patterns(setting: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """The patterns of a setting in lower case: a host, or ``*.`` and what hosts must end in; a port may follow.

    Raises:
        Configuration: naming the setting and the pattern that is none.
    """
    lowered = tuple(pattern.strip().lower() for pattern in patterns if pattern.strip())
    for pattern in lowered:
        if not _PATTERN.fullmatch(pattern) or (pattern.startswith("*.") and "." not in pattern[2:]):
            raise Configuration(
                f"{setting}: {pattern!r} is no host pattern; write hosts such as *.blob.core.windows.net, "
                "separated by commas",
                subject=setting,
            )
    return lowered


def check_account_url(url: str, patterns: Sequence[str]) -> str:
    """The account's URL as it is used: lower-case scheme and host, no trailing slash.

    Args:
        url: As a job gives it: ``https://<account>.blob.core.windows.net``; or ``https://<host>:<port>/<account>``, as
            emulators and appliances have it. The latter only where the host itself is listed, not by a wildcard.
        patterns: ``BLOB_SOURCE_HOSTS``. ``*.suffix`` covers every name below the suffix, at the scheme's own port; a
            host without wildcard covers all its ports, unless it names one.

    Raises:
        Configuration: subject ``source.account_url``; says what to write instead. Never repeats a query, which may
            hold a SAS.
    """
    if not _PLAIN.fullmatch(url) or "\\" in url:
        raise _refusal("is no URL; write https://<account>.blob.core.windows.net")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise _refusal("is no URL; write https://<account>.blob.core.windows.net") from None
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise _refusal("holds a query; write the account's address alone, and give a SAS as a credential of kind sas")
    if "@" in parts.netloc:
        raise _refusal("holds a user name; write the account's address alone")
    address = _address(host)
    if parts.scheme not in _DEFAULT_PORTS or not host or (address is None and not _HOST.fullmatch(host)):
        raise _refusal("is no URL; write https://<account>.blob.core.windows.net")
    is_loopback = host == "localhost" or (address is not None and address.is_loopback)
    if parts.scheme == "http" and not is_loopback:
        raise _refusal("is not encrypted; write https://")
    shown = f"[{host}]" if ":" in host else host
    covering = [pattern for pattern in patterns if _covers(pattern, shown, port, parts.scheme)]
    if not covering:
        raise _refusal(f"names the host {host}, which is none of those that the setting BLOB_SOURCE_HOSTS allows")
    account = parts.path.strip("/")
    if (account or address is not None or is_loopback) and not _ACCOUNT.fullmatch(account):
        raise _refusal("has a path that is no account; the container belongs to source.container")
    if account and all(pattern.startswith("*.") for pattern in covering):
        raise _refusal("holds a path; write the account's address alone, and the container as source.container")
    origin = f"{parts.scheme}://{shown}" + (f":{port}" if port not in (None, _DEFAULT_PORTS[parts.scheme]) else "")
    return f"{origin}/{account}" if account else origin


def check_container_name(name: str) -> str:
    """A container as a job gives it; for a lakehouse as the source, the GUID of its workspace.

    Raises:
        Configuration: subject ``source.container``. Names are as "Naming and Referencing Containers" has them.
    """
    if name not in ("$root", "$web", "$logs") and not (_CONTAINER.fullmatch(name) and 3 <= len(name) <= 63):
        raise Configuration(
            "is no container's name: 3 to 63 lower-case letters, digits and single dashes; folders of it belong to "
            "source.prefix",
            code="source_not_allowed",
            subject="source.container",
        )
    return name


def account_name(checked_url: str) -> str:
    """The account's name, from a URL that :func:`check_account_url` gave."""
    parts = urlsplit(checked_url)
    return parts.path.strip("/") or (parts.hostname or "").partition(".")[0]


def _covers(pattern: str, host: str, port: int | None, scheme: str) -> bool:
    name, _, given_port = pattern.rpartition(":") if re.search(r":[0-9]+$", pattern) else (pattern, "", "")
    actual_port = port or _DEFAULT_PORTS[scheme]
    if name.startswith("*."):
        return host.endswith(name[1:]) and len(host) > len(name) - 1 and actual_port == int(given_port or 443)
    return host == name and (not given_port or actual_port == int(given_port))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _refusal(detail: str) -> Configuration:
    return Configuration(detail, code="source_not_allowed", subject=SUBJECT)
