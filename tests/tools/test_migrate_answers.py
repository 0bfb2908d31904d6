"""The command line where something else than the app answers, or nobody."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.tools.conftest import run_migrate

KEY = "k3y-that-nobody-may-read"
RUNNING = {
    "id": "files-a-20240101T000000Z", "status": "transferring", "ended_at": None, "error": None, "links": {},
    "progress": {"planned": 2, "planning_done": True, "uploaded": 1, "skipped": 0, "failed": 0, "bytes_planned": 2,
                 "bytes_done": 1, "items_per_s": 1.0, "bytes_per_s": 1.0, "eta_s": 1},
}  # fmt: skip


@contextmanager
def answering(respond: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server on this machine that answers every GET with ``respond``; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            respond(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def plain(status: int, body: bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return respond


def test_nobody_answers() -> None:
    with answering(plain(200, b"{}")) as url:
        pass
    answer = run_migrate(url, "list")
    assert answer.returncode == 3
    assert f"cannot reach {url}/api" in answer.stderr
    assert "MIGRATE_URL" in answer.stderr


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>Sign in</html>"), (200, b"{}"), (200, b"[]"), (200, b"null"), (200, b""), (404, b""),
     (502, b"<html>Bad gateway</html>"), (500, b"{\"error\": \"odd\"}")],
)  # fmt: skip
@pytest.mark.parametrize("command", [("list",), ("status", "x"), ("watch", "x"), ("pause", "x"), ("schedules",)])
def test_something_else_answers(status: int, body: bytes, command: tuple[str, ...]) -> None:
    with answering(plain(status, body)) as url:
        answer = run_migrate(url, *command)
    assert answer.returncode == 3
    assert "Traceback" not in answer.stderr
    assert "does not answer as this API does" in answer.stderr


def test_the_key_is_sent_and_never_printed() -> None:
    seen: list[str | None] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["x-functions-key"])
        plain(401, b"")(handler)

    with answering(respond) as url:
        asked = [
            run_migrate(url, "list"),
            run_migrate(url, "list", "--key", KEY),
            run_migrate(url, "--key", KEY, "list"),
            run_migrate(url, "list", MIGRATE_KEY=f"{KEY}\n"),
        ]
    assert seen == [None, KEY, KEY, KEY]
    for answer in asked:
        assert answer.returncode == 4
        assert "function key" in answer.stderr
        assert KEY not in answer.stdout + answer.stderr


def test_a_redirect_does_not_get_the_key() -> None:
    seen: list[str] = []

    def elsewhere(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.path)
        plain(200, b'{"value": []}')(handler)

    with answering(elsewhere) as other, answering(plain(302, b"", Location=f"{other}/api/migrations")) as url:
        answer = run_migrate(url, "list", MIGRATE_KEY=KEY)
    assert answer.returncode == 3
    assert seen == []


def test_a_manifest_that_breaks_off_is_not_kept(tmp_path: Path) -> None:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"{" * 100)

    output = tmp_path / "manifest.json"
    with answering(respond) as url:
        answer = run_migrate(url, "manifest", "x", "--output", str(output))
    assert answer.returncode == 3
    assert "broke off after 100 of 1000 bytes" in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_watching_outlives_an_app_that_is_away_for_a_while() -> None:
    answers = iter([RUNNING, None, None, {**RUNNING, "status": "completed", "ended_at": "2024-01-01T00:00:01Z"}])

    def respond(handler: BaseHTTPRequestHandler) -> None:
        document = next(answers)
        plain(200, json.dumps(document).encode())(handler) if document else plain(503, b"starting")(handler)

    with answering(respond) as url:
        answer = run_migrate(url, "watch", RUNNING["id"])  # type: ignore[arg-type]
    assert answer.returncode == 0, answer.stderr
    assert next(answers, "none left") == "none left"


def test_the_status_of_a_run_that_reads_from_sharepoint() -> None:
    moved = {**RUNNING["progress"], "renamed": 3, "deleted": 1}  # type: ignore[dict-item]
    loads = (
        ({"units": 2375, "ceiling": 2500, "share": 0.95}, "2,375 resource units in the last minute, 95 % of the 2,500"),
        ({"units": 12, "ceiling": None, "share": None}, "12 resource units in the last minute\n"),
    )
    for load, shown in loads:
        document = {**RUNNING, "progress": moved, "source_load": load, "started_at": "now", "updated_at": "now"}
        with answering(plain(200, json.dumps(document).encode())) as url:
            answer = run_migrate(url, "status", "files-a-1")
        assert answer.returncode == 0, answer.stderr
        assert "1 uploaded, 3 renamed, 1 deleted" in answer.stdout
        assert shown in answer.stdout
