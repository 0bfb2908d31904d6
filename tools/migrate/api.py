"""The HTTP API as the command line reaches it: every way in which it can fail becomes an error with a sentence."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Final

_TIMEOUT_S: Final = 60.0
_READ_BYTES: Final = 1024 * 1024
_SHOWN_CHARACTERS: Final = 300
# Arguments of a command line are bytes, and Python keeps those that are not UTF-8 this way.
_ANY_BYTES: Final = "surrogateescape"


class BadAddress(Exception):
    """The address or the key cannot be used; the text does not repeat them, since either may hold a secret."""


class Unreachable(Exception):
    """Nobody answers at the API's address, or what answers is not this API."""


class Refused(Exception):
    """The API answered with an error.

    Attributes:
        status: HTTP status.
        code: The error's code, such as ``job_busy``; empty where the answer has none.
        message: The sentence that the API gives.
        details: ``path`` and ``message`` of each field at fault.
    """

    def __init__(self, status: int, code: str, message: str, details: list[dict[str, str]]) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the function key to wherever it points."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> None:
        return None


class Api:
    """Calls of one API.

    Args:
        url: Scheme and host, with or without ``/api``.
        key: The function key, sent as ``x-functions-key``; empty sends none.

    Raises:
        BadAddress: One of the two cannot be used.
    """

    def __init__(self, url: str, key: str) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            is_usable = False
        if not is_usable or parts.query or parts.fragment or parts.username:
            raise BadAddress("the API's address must be scheme and host alone, such as http://127.0.0.1:7071")
        key = key.strip()
        if not (key.isascii() and key.isprintable()):
            raise BadAddress("the function key holds characters that no key has; copy it once more")
        self.url = f"{url.rstrip('/').removesuffix('/api')}/api"
        self._headers = {"Accept": "application/json", **({"x-functions-key": key} if key else {})}
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if parts.hostname in ("localhost", "127.0.0.1", "::1"):
            # A proxy in the environment does not know this machine's own addresses.
            handlers.append(urllib.request.ProxyHandler({}))
        self._http = urllib.request.build_opener(*handlers)

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | None] | None = None,
        body: Any = None,
        holds: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Call and return the decoded answer; an empty answer is an empty document.

        Args:
            method: HTTP method.
            path: Below ``/api``.
            query: Parameters; those that are None are left away.
            body: Sent as JSON.
            holds: Fields without which an answer is not of this API.

        Raises:
            Refused: The API says no.
            Unreachable: No answer, or none of this API.
        """
        text = b"".join(self._blocks(self._open(method, path, query, body)))
        document = _decoded(text) if text else {}
        if not isinstance(document, dict) or any(name not in document for name in holds):
            raise Unreachable(f"{self.url} does not answer as this API does: {_shown(text)}")
        return document

    def download(self, path: str, query: Mapping[str, str | None], sink: IO[bytes]) -> None:
        """Write an answer as it is to ``sink``; raises as :meth:`call` does."""
        for block in self._blocks(self._open("GET", path, query, None)):
            sink.write(block)

    def _blocks(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        announced = answer.headers.get("Content-Length")
        count = 0
        with answer:
            while True:
                try:
                    block = answer.read(_READ_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    raise Unreachable(f"the answer of {self.url} broke off ({_reason(error)})") from None
                if not block:
                    break
                count += len(block)
                yield block
        # Reading by blocks does not tell the end of the answer from the end of the connection.
        if announced is not None and announced.isdigit() and count != int(announced):
            raise Unreachable(f"the answer of {self.url} broke off after {count} of {announced} bytes")

    def _open(
        self, method: str, path: str, query: Mapping[str, str | None] | None, body: Any
    ) -> http.client.HTTPResponse:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        url = f"{self.url}{path}" + (f"?{urllib.parse.urlencode(given, errors=_ANY_BYTES)}" if given else "")
        data = json.dumps(body).encode("ascii") if body is not None else None
        headers = {**self._headers, **({"Content-Type": "application/json"} if data is not None else {})}
        try:
            request = urllib.request.Request(url, method=method, data=data, headers=headers)  # noqa: S310 - the operator's own address
            answer: http.client.HTTPResponse = self._http.open(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Unreachable(
                f"cannot reach {self.url} ({_reason(error)}); check --url or MIGRATE_URL, and that the app is running"
            ) from None
        return answer

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        try:
            text = error.read()
        except (OSError, http.client.HTTPException):
            text = b""
        document = _decoded(text)
        told = document.get("error") if isinstance(document, dict) else None
        if isinstance(told, dict) and isinstance(told.get("message"), str):
            details = [one for one in told.get("details") or [] if isinstance(one, dict)]
            return Refused(error.code, str(told.get("code", "")), told["message"], details)
        if error.code in (401, 403):
            return Refused(
                error.code, "unauthorized",
                f"{self.url} asks for a function key (HTTP {error.code}); give it with MIGRATE_KEY or --key", [],
            )  # fmt: skip
        return Unreachable(f"{self.url} does not answer as this API does (HTTP {error.code}): {_shown(text)}")


def segment(text: str) -> str:
    """A caller's text as one segment of a path, whatever it holds."""
    return urllib.parse.quote(text, safe="", errors=_ANY_BYTES)


def _decoded(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _shown(text: bytes) -> str:
    shown = " ".join(text.decode("utf-8", "replace").split())
    return shown[:_SHOWN_CHARACTERS] or "(nothing)"


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {_TIMEOUT_S:.0f} s"
    if isinstance(cause, socket.gaierror):
        return "the host name is unknown"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__
