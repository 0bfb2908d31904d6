"""The whole platform as its users meet it: emulators and host as processes, the API over HTTP, the lake on disk.

Nothing here imports the app: what a test claims about a run rests on HTTP answers, on the emulators' journal and on a
comparison of two folders, never on the code under test.
"""

from __future__ import annotations

import json
import os
import random
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.emulators.launch import RunningEmulators
from local.emulators.launch import launch as launch_emulators
from local.host.process import RunningHost
from local.host.process import launch as launch_host

REPOSITORY = Path(__file__).resolve().parents[2]
FINISHED = ("completed", "completed_with_failures", "failed", "cancelled")
LAKEHOUSE = "Migration/Landing.Lakehouse"
WORKSPACE_ID = "a1b2c3d4-0001-4000-8000-00000000000a"
LAKEHOUSE_ID = "a1b2c3d4-0001-4000-8000-000000000001"
# How long to wait for something that should come; it says nothing about how fast it has to be.
PATIENCE_S = 90.0

_COMMITS = ("flush", "append_flush")
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; errors are answers too. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        return error

    @property
    def fields(self) -> list[str]:
        """The fields that a refusal names."""
        return [detail["path"] for detail in self.error["details"]]


@dataclass(frozen=True)
class Difference:
    """What an independent look at two folders found; falsy if they hold the same files with the same bytes."""

    missing: list[str]
    extra: list[str]
    different: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.different)


def files_below(folder: Path) -> dict[str, Path]:
    """Regular files by their relative path; links are not followed. A folder that is not there is empty."""
    found: dict[str, Path] = {}
    for current, _, names in os.walk(folder):
        for name in names:
            full = Path(current, name)
            if full.is_file() and not full.is_symlink():
                found[os.path.relpath(full, folder)] = full
    return found


def compare(source: Path, lake: Path, *, only: Callable[[str], bool] = lambda path: True) -> Difference:
    """Compare two folders byte by byte."""
    wanted = {path: file for path, file in files_below(source).items() if only(path)}
    there = files_below(lake)
    both = sorted(wanted.keys() & there.keys())
    return Difference(
        missing=sorted(wanted.keys() - there.keys()),
        extra=sorted(there.keys() - wanted.keys()),
        different=[path for path in both if wanted[path].read_bytes() != there[path].read_bytes()],
    )


def make_files(folder: Path, count: int, *, seed: int = 0, low: int = 1, high: int = 4000, folders: int = 5) -> None:
    """Write files of random bytes, spread over a few sub-folders."""
    drawn = random.Random(f"{seed}:{folder.name}")
    for number in range(count):
        below = folder / f"d{number % folders}"
        below.mkdir(parents=True, exist_ok=True)
        (below / f"f{number:04d}.bin").write_bytes(drawn.randbytes(drawn.randint(low, high)))


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait until a condition holds, and return its value."""
    deadline_s = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"waited {patience_s:g} s for {what}")
        time.sleep(0.02)
    return value


def http(
    method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> Answer:  # fmt: skip
    """One request, whatever it is answered with."""
    request = urllib.request.Request(url, data=body, method=method, headers=dict(headers or {}))
    opener = _OPENER
    if context is not None:
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
    try:
        with opener.open(request, timeout=PATIENCE_S) as answer:
            return Answer(answer.status, _lowered(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, _lowered(error.headers), error.read())


def _lowered(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


class Lake:
    """A reader's view of the emulated lake, through its own protocol, with its own token."""

    def __init__(self, emulators: RunningEmulators) -> None:
        self._addresses = emulators.addresses
        self._trust = ssl.create_default_context(cafile=self._addresses["ca_bundle"])
        client = self._addresses["clients"]["migrator"]
        form = urllib.parse.urlencode({
            "grant_type": "client_credentials", "client_id": client["client_id"],
            "client_secret": client["client_secret"], "scope": "https://storage.azure.com/.default",
        }).encode()  # fmt: skip
        url = f"{self._addresses['authority_url']}/{self._addresses['tenant_id']}/oauth2/v2.0/token"
        given = http("POST", url, form, {"Content-Type": "application/x-www-form-urlencoded"}, self._trust)
        self._token = given.json["access_token"]

    def call(self, method: str, path: str, query: str = "", body: bytes | None = None, **headers: str) -> Answer:
        """A request about a path below the lakehouse."""
        url = f"{self._addresses['onelake_dfs_url']}/{WORKSPACE_ID}/{LAKEHOUSE_ID}/{urllib.parse.quote(path)}{query}"
        sent = {"Authorization": f"Bearer {self._token}", "x-ms-version": "2023-11-03"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return http(method, url, body, sent, self._trust)

    def write(self, path: str, data: bytes) -> None:
        """Put a file there as some other program would."""
        assert self.call("PUT", path, "?resource=file", b"", Content_Length="0").status == 201
        if data:
            assert self.call("PATCH", path, "?action=append&position=0", data).status == 202
        assert self.call("PATCH", path, f"?action=flush&position={len(data)}", b"").status == 200


class Platform:
    """Emulators and host on one root.

    Attributes:
        root: Everything lies below it.
        sources: The one folder that jobs may read from.
        environment: What the host is started with; change it before :meth:`restart_host`.
    """

    def __init__(self, root: Path, *, client: str = "migrator", fault_plan: Iterable[Mapping[str, Any]] | None = None,
                 token_lifetime_s: int = 3600, seed: int = 0, estate: Mapping[str, Any] | None = None,
                 **environment: str) -> None:  # fmt: skip
        self.root = root
        self.sources = root / "sources"
        self.sources.mkdir(parents=True)
        self.state = root / "state"
        self.store = root / "store"
        self._client = client
        self._emulator_options: dict[str, Any] = {
            "token_lifetime_s": token_lifetime_s, "seed": seed, "journal": True,
            "fault_plan": list(fault_plan) if fault_plan is not None else None,
        }  # fmt: skip
        if estate is not None:
            (root / "estate.json").write_text(json.dumps(estate))
            self._emulator_options["config"] = root / "estate.json"
        self.python = sys.executable
        self.emulators = launch_emulators(root / "emulators", **self._emulator_options)
        self.environment = {
            **self.emulators.environment(client),
            "RUN_STORE_URL": f"file:{self.store}",
            "FOLDER_SOURCE_ROOTS": str(self.sources),
            # Far away, so that no timer interferes where a test does not ask for it.
            "SCHEDULE_TICK": "0 0 0 1 1 *",
            "RETRY_FIRST_DELAY_S": "0.2",
            "RETRY_ATTEMPTS": "3",
            **environment,
        }
        self.host = self._launch_host()

    # -- processes -----------------------------------------------------------------------------------------------

    def _launch_host(self) -> RunningHost:
        try:
            return launch_host(REPOSITORY, self.state, env=self.environment, python=self.python)
        except BaseException:
            self.emulators.kill()
            raise

    def kill_host(self) -> None:
        """Kill it as a power cut would."""
        self.host.kill()

    def start_host(self) -> None:
        """Start the host again on the same state."""
        self.host = self._launch_host()

    def restart_host(self, **environment: str) -> None:
        """Kill the host and start it with other settings."""
        self.kill_host()
        self.environment |= environment
        self.start_host()

    def stop_emulators(self) -> None:
        """End them in the middle of whatever they do."""
        self.emulators.kill()

    def start_emulators(self) -> None:
        """Start them again on the same root and ports."""
        self.emulators = launch_emulators(self.root / "emulators", **self._emulator_options)

    def close(self) -> None:
        """End both processes."""
        self.host.kill()
        self.emulators.kill()

    # -- the API -------------------------------------------------------------------------------------------------

    @property
    def api(self) -> str:
        return f"{self.host.url}/api"

    def call(self, method: str, path: str, document: Any = None, *, raw: bytes | None = None,
             headers: Mapping[str, str] | None = None) -> Answer:  # fmt: skip
        """A request to the API; ``path`` begins behind ``/api``."""
        body = raw if raw is not None else (json.dumps(document).encode() if document is not None else None)
        return http(method, self.api + path, body, headers or {"Content-Type": "application/json"})

    def get(self, path: str) -> Answer:
        return self.call("GET", path)

    def post(self, path: str, document: Any = None) -> Answer:
        return self.call("POST", path, document, raw=None if document is not None else b"")

    def spec(self, name: str, **changes: Any) -> dict[str, Any]:
        """A job that moves ``sources/<name>`` to ``Files/<name>``; the keyword ``target_path`` moves it elsewhere."""
        target = {"workspace": "Migration", "lakehouse": "Landing", "path": changes.pop("target_path", f"Files/{name}")}
        source = {"type": "folder", "path": str(self.source(name))}
        return {"kind": "files", "name": name, "source": source, "target": target, **changes}

    def source(self, name: str) -> Path:
        """The folder of a job's source, made when missing."""
        folder = self.sources / name
        folder.mkdir(exist_ok=True)
        return folder

    def lake(self, name: str) -> Path:
        """Where a job's files end up on disk."""
        return self.emulators.lake_folder / LAKEHOUSE / "Files" / name

    def start(self, spec: Mapping[str, Any]) -> str:
        """Start a run; its id."""
        answer = self.post("/migrations", spec)
        assert answer.status == 202, answer.body
        return str(answer.json["id"])

    def run(self, spec: Mapping[str, Any], *ending: str) -> dict[str, Any]:
        """Start a run and wait for its end, which has to be one of ``ending`` (default: completed)."""
        return self.wait(self.start(spec), *(ending or ("completed",)))

    def status(self, run: str) -> dict[str, Any]:
        answer = self.get(f"/migrations/{run}")
        assert answer.status == 200, answer.body
        document: dict[str, Any] = answer.json
        return document

    def wait(self, run: str, *wanted: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait until a run shows one of these statuses; fails at once if it ended in another one."""
        deadline_s = time.monotonic() + patience_s
        while True:
            document = self.status(run)
            if document["status"] in wanted:
                return document
            assert document["status"] not in FINISHED, document
            assert time.monotonic() < deadline_s, f"{run} is still {document}\n{self.host.log()[-3000:]}"
            time.sleep(0.03)

    def wait_uploaded(self, run: str, least: int) -> dict[str, Any]:
        """Wait until so many files were uploaded, while the run goes on."""

        def look() -> dict[str, Any] | None:
            document = self.status(run)
            assert document["status"] not in FINISHED, document
            return document if document["progress"]["uploaded"] >= least else None

        found: dict[str, Any] = until(look, f"{least} uploads of {run}")
        return found

    def manifest(self, run: str) -> dict[str, Any]:
        answer = self.get(f"/migrations/{run}/manifest")
        assert answer.status == 200, answer.body
        document: dict[str, Any] = answer.json
        return document

    # -- what happened -------------------------------------------------------------------------------------------

    def effects(self, name: str, since: int = 0) -> list[dict[str, Any]]:
        """The journal's successful effects below a job's target, from position ``since`` of the whole journal."""
        prefix = f"{LAKEHOUSE}/Files/{name}/"
        return [one for one in self.emulators.journal()[since:]
                if one["path"].startswith(prefix) and 200 <= one["status"] < 300]  # fmt: skip

    def mark(self) -> int:
        """The journal's present length, for ``since``."""
        return len(self.emulators.journal())

    def bytes_uploaded(self, name: str, since: int = 0) -> int:
        return sum(one["bytes"] for one in self.effects(name, since) if one["operation"] in ("append", "append_flush"))

    def commits(self, name: str, since: int = 0) -> Counter[str]:
        """How often content came to stand under each relative path: a flush in place, or a rename onto it."""
        prefix = f"{LAKEHOUSE}/Files/{name}/"
        found: Counter[str] = Counter()
        for one in self.effects(name, since):
            path = one["path"].removeprefix(prefix)
            staged = ".olm-staging-" in path
            if (one["operation"] in _COMMITS and not staged) or one["operation"] == "rename":
                found[path] += 1
        return found

    def assert_agreement(self, run: str, name: str, *, lake_has_extra: Iterable[str] = ()) -> dict[str, Any]:
        """The manifest and an independent look at disk say the same of every file; returns the manifest.

        Every file that the manifest calls uploaded or skipped is in the lake with the source's bytes, every other file
        of the lake is one that the caller expects, and the counts of header, records and status document agree.
        """
        manifest = self.manifest(run)
        records = {item["path"]: item for item in manifest["items"]}
        assert len(records) == len(manifest["items"]), "an item stands in the manifest twice"
        by_status = Counter(item["status"] for item in manifest["items"])
        told = {name: count for name, count in manifest["counts"].items() if name != "items" and count}
        assert told == dict(by_status)
        assert manifest["counts"]["items"] == len(records)
        progress = self.status(run)["progress"]
        for status in ("uploaded", "skipped", "failed", "deleted"):
            assert progress[status] == by_status[status], (status, progress, by_status)
        assert progress["planned"] == len(records), (progress, by_status)
        there = {path for path, item in records.items() if item["status"] in ("uploaded", "skipped") and item["hash"]}
        difference = compare(self.source(name), self.lake(name), only=there.__contains__)
        assert not difference.missing, f"claimed, but not in the lake: {difference.missing[:5]}"
        assert not difference.different, f"claimed, but with other bytes: {difference.different[:5]}"
        assert sorted(difference.extra) == sorted(lake_has_extra), "the lake holds what the manifest does not claim"
        return manifest


@contextmanager
def running(root: Path, **options: Any) -> Iterator[Platform]:
    """A platform for the time of a ``with``."""
    platform = Platform(root, **options)
    try:
        yield platform
    finally:
        platform.close()
