"""Where the documents of one run lie in the run store, and how they are read together.

::

    runs/<run>/run.json                       the job as it was posted, when, which generation
    runs/<run>/prepared.json                  what was resolved and decided before the first item
    runs/<run>/survey-<phase>/c00000...       what listings of the lake showed (before planning, and for verification)
    runs/<run>/plan/<page>/b0000.jsonl        work packages
    runs/<run>/results/<page>/settled.jsonl   records of items that planning itself settled (skipped, unmappable)
    runs/<run>/results/<page>/b0000.jsonl     records of a work package, written once it is done
    runs/<run>/results/<page>/verify0000000.jsonl  records that a step of verification overrules, named by its position
    runs/<run>/uploads/<page>-<digest>.json   how far the upload of a very large file got
    runs/<run>/manifest.<format>
    runs/<run>/cancel                         exists once somebody asked to cancel
    jobs/<job>/runs/<generation>.json         which runs this job had; the highest is the current one
    runs/<run>/source-<n>/...                 what a source showed that does not list itself in order (index_source)
    jobs/<job>/ledger/index.json              the ledger's parts
    jobs/<job>/drives/<source>/...            what is known of a drive, with the token for its next changes
    schedules/<name>.json
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from shared.model.records import FileRecord, PlannedItem, dump_lines, load_lines
from shared.policy.paths import printable, sort_key
from shared.ports import RunStore

_VERDICTS = "verify"
_READ_AT_ONCE = 16
_JOURNAL_FIELDS = {"staging", "version", "size_bytes", "position", "md5", "facts"}


class RunRecords:
    """The documents of one run."""

    def __init__(self, store: RunStore, run: str) -> None:
        self.store = store
        self.run = run
        self._root = f"runs/{run}"
        self._known_target_root: str | None = None

    def key(self, name: str) -> str:
        return f"{self._root}/{name}"

    async def load(self, name: str) -> dict[str, Any] | None:
        data = await self.store.get(self.key(name))
        return json.loads(data) if data is not None else None

    async def save(self, name: str, document: dict[str, Any]) -> None:
        await self.store.put(self.key(name), json.dumps(document).encode())

    # -- plan and results ----------------------------------------------------------------------------------------

    async def put_batch(self, page: str, batch: int, items: list[PlannedItem]) -> None:
        await self.store.put(self.key(f"plan/{page}/b{batch:04d}.jsonl"), dump_lines(items))

    async def batch(self, page: str, batch: int) -> list[PlannedItem]:
        data = await self.store.get(self.key(f"plan/{page}/b{batch:04d}.jsonl"))
        if data is None:
            raise LookupError(f"batch {page}/{batch} of {self.run} is gone from the run store")
        return load_lines(data)

    async def put_results(self, page: str, name: str, records: list[FileRecord]) -> None:
        await self.store.put(self.key(f"results/{page}/{name}.jsonl"), dump_lines(records))

    async def results(self, page: str, name: str) -> list[FileRecord] | None:
        data = await self.store.get(self.key(f"results/{page}/{name}.jsonl"))
        return load_lines(data) if data is not None else None

    async def put_verdicts(self, page: str, position: int, records: list[FileRecord]) -> None:
        """What the step of verification that began at ``position`` overrules; in place of what it said before."""
        if records:
            await self.put_results(page, f"{_VERDICTS}{position:07d}", records)
        else:
            await self.store.delete([self.key(f"results/{page}/{_VERDICTS}{position:07d}.jsonl")])

    async def verdicts(self, page: str, before: int | None = None) -> dict[str, FileRecord]:
        """Records that verification overruled, by path; only of its steps before a position, if one is given."""
        found: dict[str, FileRecord] = {}
        for key in await self.store.list(self.key(f"results/{page}")):
            name = key.rpartition("/")[2].removesuffix(".jsonl")
            if name.startswith(_VERDICTS) and (before is None or int(name.removeprefix(_VERDICTS)) < before):
                found.update({record["path"]: record for record in load_lines(await self.store.get(key) or b"")})
        return found

    def upload_journal(self, page: str, path: str) -> "UploadRecord":
        """How far the upload of one very large file got; implements ``ports.UploadJournal``."""
        digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        return UploadRecord(self.store, self.key(f"uploads/{page}-{digest}.json"))

    # -- reading a run as a whole --------------------------------------------------------------------------------

    async def pages(self) -> list[str]:
        """Pages of the first plan in order, then those of each round of failed items."""
        found: set[str] = set()
        for folder in ("plan", "results"):
            prefix = self.key(folder)
            found |= {key[len(prefix) + 1 :].partition("/")[0] for key in await self.store.list(prefix)}
        return sorted(found, key=_place)

    async def page_records(self, page: str, *, verified: bool = True) -> list[FileRecord]:
        """One record for each item of a page, in path order, verification's word last (or, if asked so, left out).

        Items of a package that was never carried out appear as ``planned``; items that were still to be retried when
        the run ended are ``failed``.
        """
        results, plan = self.key(f"results/{page}"), self.key(f"plan/{page}")
        done = {key.rpartition("/")[2] for key in await self.store.list(results)}
        planned = {key.rpartition("/")[2] for key in await self.store.list(plan)}
        records: dict[str, FileRecord] = {}
        settled = sorted(name for name in done if not name.startswith(_VERDICTS))
        async for data in self._read([f"{results}/{name}" for name in settled]):
            for record in load_lines(data):
                records[record["path"]] = record
        async for data in self._read([f"{plan}/{name}" for name in sorted(planned - done)]):
            for item in load_lines(data):
                records[item["path"]] = not_moved(item, page, await self._target_root())
        if verified and any(name.startswith(_VERDICTS) for name in done):
            records.update(await self.verdicts(page))
        for path, record in records.items():
            if record["status"] == "retrying":
                records[path] = {**record, "status": "failed"}
        return [records[path] for path in sorted(records, key=sort_key)]

    async def _read(self, keys: Sequence[str]) -> AsyncIterator[bytes]:
        """Documents in the order of their keys, a few asked for at the same time; empty where there is none."""
        for at in range(0, len(keys), _READ_AT_ONCE):
            for data in await asyncio.gather(*(self.store.get(key) for key in keys[at : at + _READ_AT_ONCE])):
                yield data or b""

    async def final_pages(self, after: str | None = None) -> AsyncIterator[tuple[str, list[FileRecord]]]:
        """Pages after the named one, each item's final record once: later rounds overrule the first."""
        pages = await self.pages()
        overruled: dict[str, FileRecord] = {}
        for page in pages:
            if _place(page)[0] > 1:
                overruled.update({record["path"]: record for record in await self.page_records(page)})
        for page in pages:
            if _place(page)[0] == 1 and (after is None or _place(page) > _place(after)):
                yield page, [overruled.get(record["path"], record) for record in await self.page_records(page)]

    async def records(self) -> AsyncIterator[FileRecord]:
        """Every item's final record once, in path order."""
        async for _, records in self.final_pages():
            for record in records:
                yield record

    async def _target_root(self) -> str:
        if self._known_target_root is None:
            document = await self.load("run.json") or {}
            self._known_target_root = document.get("spec", {}).get("target", {}).get("path", "")
        return self._known_target_root

    async def cancelled(self) -> bool:
        return await self.store.get(self.key("cancel")) is not None


class UploadRecord:
    """One document that is there as long as an upload goes on."""

    def __init__(self, store: RunStore, key: str) -> None:
        self._store = store
        self._key = key

    async def load(self) -> dict[str, Any] | None:
        """What was saved last; None as well where it cannot be read, since an upload can always begin anew."""
        data = await self._store.get(self._key)
        try:
            document = json.loads(data) if data is not None else None
        except ValueError:
            return None
        return document if isinstance(document, dict) and document.keys() >= _JOURNAL_FIELDS else None

    async def save(self, document: dict[str, Any]) -> None:
        await self._store.put(self._key, json.dumps(document).encode())

    async def clear(self) -> None:
        await self._store.delete([self._key])


def not_moved(item: PlannedItem, batch: str, target_root: str) -> FileRecord:
    """The record of an item that was planned and not (yet) touched."""
    record: FileRecord = {
        "path": item["path"], "target": f"{target_root}/{printable(item['path'])}", "status": "planned",
        "size_bytes": item["size_bytes"], "hash": None, "hash_kind": None,
        "source_version": item["source_version"] or None, "etag": None, "attempts": 0, "error_code": None,
        "error_detail": None, "batch": batch, "finished_at": "",
    }  # fmt: skip
    if "facts" in item:
        record["source"] = item["facts"]
    if item.get("id"):
        record |= {"source_id": item["id"], "source_ref": item["ref"]}
    return record


def _place(page: str) -> tuple[int, int]:
    """Round and number of a page; as text, the hundred-thousandth would come before the second."""
    before, _, number = page.partition("p")
    return int(before[1:] or 1), int(number)
