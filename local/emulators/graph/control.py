"""Graph's switchboard from a program: change libraries and ask what they hold. Standard library only."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlencode

Ask = Callable[[str, str, bytes | None], bytes]


class GraphControl:
    """Commands to the Graph of running emulators.

    A library goes by its name, together with the address of its site where the name alone is not unique. Changes return
    ``{"id", "drive_id", "path", "kind", "deleted"}`` of the item. Every method raises `launch.EmulatorsFailed` with a
    sentence where the emulators refuse.

    Args:
        ask: sends method, path and body to the switchboard and returns its answer.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def apply(self, changes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Makes many changes in one call; `tenant.Change` has the fields."""
        answer = self._ask("POST", "/graph/changes", json.dumps(list(changes)).encode())
        results: list[dict[str, Any]] = json.loads(answer)["results"]
        return results

    def _change(self, op: str, **fields: Any) -> dict[str, Any]:
        return self.apply([{"op": op, **{name: value for name, value in fields.items() if value is not None}}])[0]

    def put(
        self, library: str, path: str, content: bytes | None = None, *, size: int | None = None, site: str | None = None
    ) -> dict[str, Any]:
        """Adds a file, with the folders above it, or gives an existing one other content.

        Without ``content`` the bytes are generated, other ones each time: ``size`` of them, by default as many as
        before, or 1000.
        """
        encoded = None if content is None else base64.b64encode(content).decode()
        return self._change("put", library=library, path=path, content=encoded, size=size, site=site)

    def folder(self, library: str, path: str, *, site: str | None = None) -> dict[str, Any]:
        """Adds a folder, with those above it."""
        return self._change("folder", library=library, path=path, site=site)

    def delete(self, library: str, path: str, *, descendants: bool = True, site: str | None = None) -> dict[str, Any]:
        """Deletes a file, or a folder with everything in it.

        The feed tells of what was in the folder, before the folder itself; without ``descendants`` of the folder alone.
        """
        return self._change("delete", library=library, path=path, descendants=descendants, site=site)

    def restore(self, library: str, path: str, *, site: str | None = None) -> dict[str, Any]:
        """Brings back what was deleted at that path last, with everything that went with it, under the same ids."""
        return self._change("restore", library=library, path=path, site=site)

    def rename(self, library: str, path: str, name: str, *, site: str | None = None) -> dict[str, Any]:
        """Gives a file or folder another name."""
        return self._change("rename", library=library, path=path, name=name, site=site)

    def move(
        self, library: str, path: str, to: str, name: str | None = None, *, site: str | None = None
    ) -> dict[str, Any]:
        """Moves a file or folder into the folder ``to`` (empty for the root), perhaps under another name."""
        return self._change("move", library=library, path=path, to=to, name=name, site=site)

    def touch(self, library: str, path: str, *, site: str | None = None) -> dict[str, Any]:
        """Changes metadata only: eTag and date move, content and hash stay."""
        return self._change("touch", library=library, path=path, site=site)

    def mark(self, library: str, path: str, mark: str, *, on: bool = True, site: str | None = None) -> dict[str, Any]:
        """Puts a file into a state or out of it.

        The marks are ``malware``, ``checked_out``, ``dlp_blocked``, ``locked``, ``hash_pending`` and ``promoted``.
        """
        return self._change("mark", library=library, path=path, mark=mark, on=on, site=site)

    def expire_tokens(self, library: str | None = None, *, site: str | None = None) -> None:
        """Gives up every delta token and link issued so far, of one library or of all, those of present walks too."""
        self._change("expire_tokens", library=library, site=site)

    def expire_downloads(self) -> None:
        """Gives up every pre-authenticated URL issued so far."""
        self._change("expire_downloads")

    def grant(self, client_id: str, site: str, role: str | None = "read") -> None:
        """Grants a client a role on a site, or takes it away with None."""
        self._change("grant", client_id=client_id, site=site, role=role)

    def behave(self, **settings: Any) -> dict[str, Any]:
        """Changes how Graph answers, and returns it all; `estate.GraphBehaviour` has the settings."""
        behaviour: dict[str, Any] = json.loads(self._ask("PUT", "/graph/behaviour", json.dumps(settings).encode()))
        return behaviour

    def counters(self) -> dict[str, Any]:
        """Returns ``{"requests": {kind: n}, "throttled": {kind: n}, "undecorated": n, "units": n, "minutes": [...]}``.

        A minute is one of one application: ``client_id``, ``began_s``, ``units``, ``requests``, ``throttled``. Requests
        are undecorated whose User-Agent has not the form that SharePoint asks for.
        """
        counters: dict[str, Any] = json.loads(self._ask("GET", "/graph/counters", None))
        return counters

    def reset_counters(self) -> None:
        """Begins counting anew: requests, units, and the downloads of each item."""
        self._ask("DELETE", "/graph/counters", None)

    def tree(
        self, library: str, *, hashes: Sequence[str] = ("sha256",), site: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Tells what a library holds now, page by page and in no useful order.

        Each item has ``slot``, ``id``, ``path``, ``kind`` (``file``, ``folder``, ``notebook``, ``section``,
        ``shortcut``), ``size``, ``etag``, ``modified`` and ``marks``; a file also ``listed_size`` and
        ``listed_quick_xor_hash`` (what metadata say, which for promoted files is not what a download gives),
        ``downloads`` and the hashes asked for, of ``sha256`` and ``md5``.
        """
        stated = {"library": library, "hashes": ",".join(hashes), **({"site": site} if site else {})}
        after = 0
        while True:
            text = self._ask("GET", f"/graph/tree?{urlencode({**stated, 'after': after})}", None).decode()
            lines = [json.loads(line) for line in text.split("\n") if line]
            if not lines:
                return
            yield from lines
            after = lines[-1]["slot"]

    def content(self, library: str, path: str, *, site: str | None = None) -> bytes:
        """Returns the bytes that a download of the file gives."""
        stated = {"library": library, "path": path, **({"site": site} if site else {})}
        return self._ask("GET", f"/graph/content?{urlencode(stated)}", None)
