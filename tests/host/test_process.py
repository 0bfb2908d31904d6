"""The command line: how the host starts, refuses to start, and stops."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from local.host import HostFailed, launch
from local.host.settings import HostError, read_host_options, read_local_settings
from tests.host.conftest import APPS, Client, until


def refused(app_dir: Path, tmp_path: Path, **options: object) -> str:
    """Start a host that must refuse; returns what it says."""
    with pytest.raises(HostFailed) as failure:
        launch(app_dir, tmp_path / "state", {"TRACES": str(tmp_path)}, **options)  # type: ignore[arg-type]
    assert failure.value.exit_code == 2
    return failure.value.log


def app_of(tmp_path: Path, source: str) -> Path:
    app_dir = tmp_path / "app"
    app_dir.mkdir()
    (app_dir / "function_app.py").write_text("import azure.functions as func, azure.durable_functions as df\n" + source)
    return app_dir


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        log = refused(APPS / "web", tmp_path, port=port)
    assert f"Port {port} is in use: end what listens there, or give another with --port." in log
    assert "Traceback" not in log


def test_the_app_s_own_error_is_shown_with_its_traceback(tmp_path: Path) -> None:
    log = refused(app_of(tmp_path, "app = func.FunctionApp()\nraise KeyError('mine')"), tmp_path)
    assert "Traceback" in log
    assert "could not be loaded: KeyError: 'mine'" in log


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "defines 0 top-level function apps"),
        ("a = func.FunctionApp()\nb = func.FunctionApp()", "defines 2 top-level function apps"),
        (
            "app = df.DFApp()\n@app.entity_trigger(context_name='context')\ndef counter(context): pass",
            "Function 'counter' is a durable entity: this host does not serve entities.",
        ),
        (
            "app = func.FunctionApp()\n@app.queue_trigger(arg_name='m', queue_name='q', connection='c')\n"
            "def queued(m): pass",
            "Function 'queued' has a binding of type 'queueTrigger', which this host does not serve.",
        ),
        (
            "app = func.FunctionApp()\n@app.route(route='x')\ndef f(request): pass",
            "Function 'f' takes the parameters (request) but its bindings are named (req)",
        ),
        (
            "app = func.FunctionApp()\n@app.route(route='x/{id:nope}')\ndef f(req): pass",
            "The route 'api/x/{id:nope}' has the constraint 'nope'",
        ),
        (
            "app = func.FunctionApp()\n@app.route(route='x')\ndef f(req): pass\n"
            "@app.function_name('f')\n@app.route(route='y')\ndef g(req): pass",
            "Function f does not have a unique function name",
        ),
    ],
)
def test_an_app_that_cannot_be_served(tmp_path: Path, source: str, words: str) -> None:
    assert words in refused(app_of(tmp_path, source), tmp_path)


def test_no_app_at_all(tmp_path: Path) -> None:
    assert "There is no function_app.py in" in refused(tmp_path, tmp_path)
    assert "There is no directory" in refused(tmp_path / "nowhere", tmp_path)


def test_two_hosts_on_one_state_directory(start_host: Callable[..., Client], tmp_path: Path) -> None:
    client = start_host("web")
    log = refused(APPS / "web", tmp_path)
    assert f"Another host (process {client.host.pid}) uses the state directory" in log
    client.host.kill()
    start_host("web")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"IsEncrypted": true, "Values": {"A": "b"}}', "is encrypted"),
        ('{"Values": {"A": ["b"]}}', "Values.A in"),
        ('{"Values": []}', "'Values' in"),
        ('{"Values": {"A": "b"}', "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"Host": {"LocalHttpPort": "high"}}', "Host.LocalHttpPort"),
    ],
)
def test_an_unusable_settings_file(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(HostError, match=r"settings\.json") as refusal:
        read_local_settings(path)
    assert words in str(refusal.value)


def test_an_unusable_settings_file_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"IsEncrypted": true}')
    log = refused(APPS / "web", tmp_path, settings_file=path)
    assert "func settings decrypt" in log
    assert "Traceback" not in log


def test_the_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    assert read_local_settings(path).http_port is None
    path.write_text(
        '\ufeff{"Values": {"A": "x // y", "B": "/* z */", "N": null, "F": 1.5},'
        ' "Host": {"LocalHttpPort": 7123, "CORS": "*"},'
        ' "ConnectionStrings": {"DB": "d", "O": {"ConnectionString": "o"}}}'
    )
    settings = read_local_settings(path)
    assert settings.values == {
        "A": "x // y",
        "B": "/* z */",
        "F": "1.5",
        "ConnectionStrings:DB": "d",
        "ConnectionStrings:O": "o",
    }
    assert (settings.http_port, settings.cors_origins) == (7123, ("*",))


def test_host_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB", "FromSetting")
    path = tmp_path / "host.json"
    assert read_host_options(path).route_prefix == "api"
    content = {
        "functionTimeout": "1.00:10:30",
        "logging": {"logLevel": {"default": "Warning"}},
        "extensions": {
            "http": {"routePrefix": "", "maxConcurrentRequests": 4, "maxOutstandingRequests": -1},
            "durableTask": {"hubName": "%HUB%", "maxConcurrentActivityFunctions": 3},
        },
    }
    path.write_text(json.dumps(content))
    options = read_host_options(path)
    assert (options.route_prefix, options.hub_name, options.max_activities) == ("", "FromSetting", 3)
    assert (options.max_concurrent_requests, options.max_outstanding_requests) == (4, None)
    assert options.function_timeout_s == 24 * 3600 + 630
    path.write_text('{"functionTimeout": "ten"}')
    with pytest.raises(HostError, match="hh:mm:ss"):
        read_host_options(path)


def test_a_disabled_function_and_log_levels(tmp_path: Path, start_host: Callable[..., Client]) -> None:
    app_dir = app_of(
        tmp_path,
        "import logging\napp = func.FunctionApp()\n"
        "@app.route(route='a')\ndef a(req):\n    logging.info('quiet words')\n    logging.warning('loud words')\n"
        "    return 'a'\n"
        "@app.route(route='b')\ndef b(req): return 'b'\n",
    )
    (app_dir / "host.json").write_text('{"logging": {"logLevel": {"default": "Information", "Function.a": "Warning"}}}')
    client = start_host(app_dir, **{"AzureWebJobs.b.Disabled": "true"})
    assert requests.get(client.url("api/a"), timeout=10).text == "a"
    assert requests.get(client.url("api/b"), timeout=10).status_code == 404
    log = client.host.log()
    assert "Function b is disabled." in log
    assert "loud words" in log
    assert "quiet words" not in log
    assert "Executing 'Functions.a'" not in log
    assert "\x1b[" not in log


def test_a_function_that_runs_too_long_fails(tmp_path: Path, start_host: Callable[..., Client]) -> None:
    app_dir = app_of(
        tmp_path,
        "import asyncio\napp = func.FunctionApp()\n"
        "@app.route(route='long')\nasync def long(req): await asyncio.sleep(60)\n",
    )
    (app_dir / "host.json").write_text('{"functionTimeout": "00:00:01"}')
    client = start_host(app_dir)
    assert requests.get(client.url("api/long"), timeout=30).status_code == 500
    assert "Timeout value of 1 s was exceeded by function: Functions.long" in client.host.log()


def in_background(client: Client, path: str) -> list[int]:
    """Send a request from a thread; the list receives its status."""
    statuses: list[int] = []

    def send() -> None:
        try:
            statuses.append(requests.post(client.url(path), timeout=60).status_code)
        except requests.ConnectionError:
            statuses.append(0)

    threading.Thread(target=send, daemon=True).start()
    return statuses


@pytest.mark.parametrize("kind", ["slow", "slow_async"])
def test_ctrl_c_lets_what_runs_end(start_host: Callable[..., Client], kind: str) -> None:
    client = start_host("web")
    statuses = in_background(client, f"api/{kind}/one/0.5")
    until(lambda: (client.traces / "began-one").exists(), "the call to begin")
    client.host.interrupt()
    until(lambda: "Stopping" in client.host.log(), "the drain")
    assert requests.get(client.url("api/head"), timeout=10).status_code == 503
    assert client.host.wait() == 0
    assert (client.traces / "ended-one").exists()
    until(lambda: statuses == [200], "the answer")
    assert "Host stopped." in client.host.log()


@pytest.mark.parametrize("kind", ["slow", "slow_async"])
def test_a_second_ctrl_c_stops_at_once(start_host: Callable[..., Client], kind: str) -> None:
    client = start_host("web")
    in_background(client, f"api/{kind}/one/600")
    until(lambda: (client.traces / "began-one").exists(), "the call to begin")
    client.host.interrupt()
    until(lambda: "Stopping" in client.host.log(), "the drain")
    client.host.interrupt()
    assert client.host.wait() == 130
    assert not (client.traces / "ended-one").exists()


def test_ctrl_c_records_the_running_activity_and_starts_no_other(start_host: Callable[..., Client]) -> None:
    client = start_host()
    client.start("paused_work", "d1")
    client.start("collect", "d2", 0)
    until(lambda: client.lines("began-d2"), "the activity")
    client.host.interrupt()
    assert client.host.wait() == 0
    assert client.lines("ended-d2") == 1
    client = start_host()
    assert client.output("d2") == []
    assert client.lines("began-d2") == 1
    for n in range(3):
        client.raise_event("d1", "step", n)
    assert client.output("d1") == [0, 1, 2]


def test_the_settings_file_beside_the_app_gives_port_and_values(tmp_path: Path) -> None:
    app_dir = app_of(
        tmp_path,
        "import os\napp = func.FunctionApp()\n"
        "@app.route(route='a')\ndef a(req): return os.environ['VALUE'] + os.environ['WEBSITE_HOSTNAME']\n",
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    content = {"Values": {"VALUE": "v "}, "Host": {"LocalHttpPort": port}}
    (app_dir / "local.settings.json").write_text(json.dumps(content))
    with launch(app_dir, tmp_path / "state", port=None) as host:
        assert host.url == f"http://127.0.0.1:{port}"
        assert requests.get(f"{host.url}/api/a", timeout=10).text == f"v localhost:{port}"
