"""Reading what a copy by URL names: Put Blob From URL and Put Block From URL, as the service does it by itself.

Loopback only, so that an emulator that somebody can reach sends no request, and no token, anywhere else. Facts:
"Put Blob From URL" and "Put Block From URL" of the Blob service REST reference; answers about the source carry its
status under the code CannotVerifyCopySource (docs/protocols/onelake.md section 8).
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from local.emulators.onelake.content import Received, read_md5
from local.emulators.onelake.errors import ServiceError
from local.emulators.onelake.store import Store, write_all
from local.emulators.wire import CHUNK_BYTES, Request, damaged

MAX_BLOB_BYTES = 5000 * 1024 * 1024
MAX_BLOCK_BYTES = 4000 * 1024 * 1024
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_CONDITIONS = ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since")
# The properties that the new blob takes over unless the call says otherwise (x-ms-copy-source-blob-properties).
_TAKEN_OVER = ("Content-Type", "Content-Encoding", "Content-Language", "Content-Disposition", "Cache-Control")
_ANSWER_WITHIN_S = 30


class CopySources:
    """Fetches sources over HTTP and HTTPS.

    Args:
        trusted: PEM files of the authorities whose servers are believed.
    """

    def __init__(self, trusted: Sequence[Path]) -> None:
        self._trusted = trusted
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Ends the connections that were kept."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def fetch(self, request: Request, store: Store, limit_bytes: int) -> tuple[Received, dict[str, str]]:
        """Takes the source of a request in and checks its conditions and MD5.

        Returns:
            The bytes, and the content headers of the source.

        Raises:
            ServiceError: the source cannot be had as asked for.
        """
        if request.body.length:
            raise ServiceError("ContentLengthMustBeZero")
        expected = read_md5(request.headers, "x-ms-source-content-md5", "InvalidHeaderValue")
        url = _local_url(request.headers["x-ms-copy-source"])
        sent = {name: request.headers[f"x-ms-source-{name}"] for name in _CONDITIONS
                if f"x-ms-source-{name}" in request.headers}  # fmt: skip
        if "x-ms-copy-source-authorization" in request.headers:
            sent["Authorization"] = request.headers["x-ms-copy-source-authorization"]
        wanted = request.headers.get("x-ms-source-range")
        if wanted is not None:
            if not _RANGE.fullmatch(wanted):
                raise ServiceError("InvalidHeaderValue")
            sent["Range"] = wanted
        if "x-ms-version" in request.headers:
            sent["x-ms-version"] = request.headers["x-ms-version"]
        try:
            async with self._pool().get(url, headers=sent, allow_redirects=False) as answer:
                if answer.status not in (200, 206):
                    raise _unverified(answer.status, answer.headers.get("x-ms-error-code", ""))
                if answer.content_length is None or (wanted is not None) is not (answer.status == 206):
                    raise ServiceError("CannotVerifyCopySource")
                if answer.content_length > limit_bytes:
                    raise ServiceError("RequestBodyTooLarge")
                received = await _take(answer, store, damages=request.body.damage)
                headers = {name: answer.headers[name] for name in _TAKEN_OVER if name in answer.headers}
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise ServiceError("CannotVerifyCopySource") from None
        if expected and received.md5 != expected:
            received.discard()
            raise ServiceError("Md5Mismatch")
        return received, headers

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            trust = ssl.create_default_context()
            for file in self._trusted:
                trust.load_verify_locations(file)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=trust),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_ANSWER_WITHIN_S, sock_read=_ANSWER_WITHIN_S),
                auto_decompress=False,
                skip_auto_headers=("Accept-Encoding",),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


def _local_url(text: str) -> URL:
    if len(text) > 2048 or urlsplit(text).scheme not in ("http", "https"):
        raise ServiceError("InvalidHeaderValue")
    url = URL(text, encoded=True)
    try:
        is_local = url.host == "localhost" or ipaddress.ip_address(url.host or "").is_loopback
    except ValueError:
        is_local = False
    if not is_local:
        raise ServiceError("CannotVerifyCopySource", status=403)
    return url


def _unverified(status: int, code: str) -> ServiceError:
    if status in (304, 412):
        return ServiceError("SourceConditionNotMet")
    told = {"x-ms-copy-source-status-code": str(status)}
    if code:
        told["x-ms-copy-source-error-code"] = code
    return ServiceError("CannotVerifyCopySource", status=status if status >= 400 else 400, headers=told)


async def _take(answer: aiohttp.ClientResponse, store: Store, *, damages: bool) -> Received:
    descriptor, part = store.open_part()
    received = Received(answer.content_length or 0, "", None, descriptor, part)
    digest = hashlib.md5(usedforsecurity=False)
    try:
        async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
            digest.update(chunk)
            write_all(descriptor, damaged(chunk) if damages else chunk)
            damages = False
    except BaseException:
        received.discard()
        raise
    if os.fstat(descriptor).st_size != received.length:
        received.discard()
        raise ServiceError("CannotVerifyCopySource")
    received.md5 = base64.b64encode(digest.digest()).decode()
    return received
