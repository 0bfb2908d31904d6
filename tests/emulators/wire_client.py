"""A client that sends exactly what a test says, over TLS with the emulators' CA."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.parse
from dataclasses import dataclass
from typing import Any

from azure.identity import ClientSecretCredential

from local.emulators.launch import RunningEmulators

STORAGE = "https://storage.azure.com/.default"
FABRIC = "https://api.fabric.microsoft.com/.default"
EMPTY = {"Content-Length": "0"}


def credential(emulators: RunningEmulators, client: str = "migrator", **changes: Any) -> ClientSecretCredential:
    addresses = emulators.addresses
    registration = addresses["clients"][client]
    arguments = {
        "tenant_id": addresses["tenant_id"],
        "client_id": registration["client_id"],
        "client_secret": registration["client_secret"],
        "authority": addresses["authority_url"],
        "disable_instance_discovery": True,
        "connection_verify": addresses["ca_bundle"],
        "retry_total": 0,
    }
    return ClientSecretCredential(**{**arguments, **changes})


def quoted(path: str) -> str:
    return urllib.parse.quote(path, safe="/")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.headers.get("x-ms-error-code", "")


class WireClient:
    def __init__(self, emulators: RunningEmulators) -> None:
        self._emulators = emulators
        self._context = ssl.create_default_context(cafile=emulators.addresses["ca_bundle"])
        self._tokens: dict[tuple[str, str], str] = {}

    def token(self, client: str = "migrator", scope: str = STORAGE) -> str:
        if (client, scope) not in self._tokens:
            self._tokens[client, scope] = credential(self._emulators, client).get_token(scope).token
        return self._tokens[client, scope]

    def open(self, url_key: str = "onelake_dfs_url") -> http.client.HTTPSConnection:
        url = urllib.parse.urlsplit(self._emulators.addresses[url_key])
        return http.client.HTTPSConnection(url.hostname or "", url.port, context=self._context, timeout=20)

    def send(
        self,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        *,
        client: str | None = "migrator",
        scope: str = STORAGE,
        url_key: str = "onelake_dfs_url",
        bare: bool = False,
    ) -> Answer:
        """Sends one request; ``bare`` adds no header of its own, not even Content-Length."""
        connection = self.open(url_key)
        try:
            connection.putrequest(
                method, target, skip_accept_encoding=True, skip_host=bool(headers and "Host" in headers)
            )
            sent = dict(headers or {})
            if client is not None:
                sent.setdefault("Authorization", f"Bearer {self.token(client, scope)}")
            if not bare and (body is not None or method in ("PUT", "PATCH", "POST")):
                sent.setdefault("Content-Length", str(len(body or b"")))
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, content)
        finally:
            connection.close()

    def put_file(self, path: str, content: bytes, **headers: str) -> Answer:
        """Creates and writes a file of the workspace in two calls."""
        target = f"/Migration/{quoted(path)}"
        created = self.send("PUT", f"{target}?resource=file", headers)
        assert created.status == 201, created
        if not content:
            return created
        answer = self.send("PATCH", f"{target}?action=append&position=0&flush=true", body=content)
        assert answer.status == 202, answer
        return answer
