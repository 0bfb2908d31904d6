"""Graph's part of the switchboard: change a library while somebody reads it, and ask what it holds.

``POST /graph/changes`` makes changes (a JSON list of `tenant.Change`); ``GET /graph/tree`` tells what a library holds
as JSON lines, after the slot ``after`` and at most ``limit`` of them; ``GET /graph/content`` gives the bytes of one
file; ``GET`` and ``PUT /graph/behaviour`` read and change `estate.GraphBehaviour`; ``GET`` and ``DELETE
/graph/counters`` read and reset what was counted.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from local.emulators.estate import GraphBehaviour, first_mistake
from local.emulators.graph.items import etag, timestamp
from local.emulators.graph.library import FILE, KIND_NAMES, MARKS, ChangeRefused, Library
from local.emulators.graph.service import Graph
from local.emulators.graph.tenant import parse_changes
from local.emulators.wire import Request, Response

_LIMIT_BYTES = 256 * 1024 * 1024
_TREE_ITEMS = 2000
# A page of a tree is hashed at one go, and everything else waits for it.
_TREE_BYTES = 256 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_HASHES = ("sha256", "md5")


class GraphSwitchboard:
    """Answers what concerns Graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    async def handle(self, request: Request) -> Response:
        """Answers one request; a mistake in it is 400 with a sentence."""
        try:
            match request.method, request.path:
                case "POST", "/graph/changes":
                    return await self._change(request)
                case "GET", "/graph/tree":
                    return self._tree(request.query)
                case "GET", "/graph/content":
                    return self._content(request.query)
                case "GET", "/graph/behaviour":
                    return _json(200, self._graph.behaviour.model_dump())
                case "PUT", "/graph/behaviour":
                    return await self._behave(request)
                case "GET", "/graph/counters":
                    return _json(200, self._graph.throttle.document())
                case "DELETE", "/graph/counters":
                    self._graph.throttle.reset()
                    for drive in self._graph.tenant.drives:
                        drive.library.downloads = array("I", bytes(4 * len(drive.library.names)))
                    return Response(204)
        except ChangeRefused as refused:
            return _json(400, {"error": str(refused)})
        return _json(404, {"error": "Only changes, tree, content, behaviour and counters are in /graph."})

    async def _document(self, request: Request) -> Any:
        if request.body.length > _LIMIT_BYTES:
            raise ChangeRefused("The request is too large.")
        try:
            return json.loads(await request.body.read() or b"null")
        except ValueError as error:
            raise ChangeRefused(f"The request is not JSON: {error}") from error

    async def _change(self, request: Request) -> Response:
        changes = parse_changes(await self._document(request))
        return _json(200, {"results": self._graph.tenant.apply(changes)})

    async def _behave(self, request: Request) -> Response:
        given = await self._document(request)
        try:
            wanted = {**self._graph.behaviour.model_dump(), **(given if isinstance(given, dict) else {"": given})}
            behaviour = GraphBehaviour.model_validate(wanted)
        except ValidationError as error:
            raise ChangeRefused(f"The behaviour is wrong at {first_mistake(error)}") from error
        self._graph.follow(behaviour)
        return _json(200, behaviour.model_dump())

    def _library(self, query: dict[str, str]) -> Library:
        return self._graph.tenant.find(query.get("library"), query.get("site")).library

    def _content(self, query: dict[str, str]) -> Response:
        library = self._library(query)
        slot = library.find(query.get("path", ""))
        if slot is None or library.kinds[slot] != FILE:
            raise ChangeRefused(f"There is no file {query.get('path')!r}.")
        content = library.content(slot)
        return Response(200, {"Content-Type": "application/octet-stream"}, content.read(0, content.size))

    def _tree(self, query: dict[str, str]) -> Response:
        library = self._library(query)
        hashes = [name for name in query.get("hashes", "sha256,md5").split(",") if name]
        after, limit = query.get("after", "0"), query.get("limit", str(_TREE_ITEMS))
        if not after.isdigit() or not limit.isdigit() or not set(hashes) <= set(_HASHES):
            raise ChangeRefused("after and limit are numbers, and hashes are of sha256,md5.")
        lines = []
        left = _TREE_BYTES
        for slot in _live(library, int(after)):
            line = _line(library, slot, hashes)
            lines.append(json.dumps(line, ensure_ascii=False))
            left -= line["size"] if hashes else 0
            if left < 0 or len(lines) == int(limit):
                break
        text = "".join(f"{line}\n" for line in lines)
        return Response(200, {"Content-Type": "application/x-ndjson"}, text.encode())


def _live(library: Library, after: int) -> Iterator[int]:
    return (slot for slot in range(after + 1, len(library.names)) if not library.gone[slot])


def _line(library: Library, slot: int, hashes: list[str]) -> dict[str, Any]:
    line: dict[str, Any] = {
        "slot": slot,
        "id": library.item_id(slot),
        "path": library.path(slot),
        "kind": KIND_NAMES[library.kinds[slot]],
        "size": library.sizes[slot],
        "etag": etag(library, slot),
        "modified": timestamp(library.modified[slot]),
        "marks": [mark for mark, bit in MARKS.items() if library.marks[slot] & bit],
    }
    if library.kinds[slot] == FILE:
        listed, content = library.listed_content(slot), library.content(slot)
        line["size"] = content.size
        line["listed_size"] = listed.size
        line["listed_quick_xor_hash"] = listed.quick_xor_hash()
        line["downloads"] = library.downloads[slot]
        digests = [hashlib.new(name, usedforsecurity=False) for name in hashes]
        for start in range(0, content.size, _CHUNK_BYTES):
            data = content.read(start, min(content.size, start + _CHUNK_BYTES))
            for digest in digests:
                digest.update(data)
        line |= {name: digest.hexdigest() for name, digest in zip(hashes, digests, strict=True)}
    return line


def _json(status: int, document: dict[str, Any]) -> Response:
    return Response(status, {"Content-Type": "application/json"}, json.dumps(document).encode())
