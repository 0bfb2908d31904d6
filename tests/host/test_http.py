"""HTTP triggers: routes, methods, bodies, answers."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator

import pytest
import requests

from local.host import launch
from local.host.routes import compile_route
from local.host.settings import HostError
from tests.host.conftest import APPS, Client


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    directory = tmp_path_factory.mktemp("web")
    env = {"TRACES": str(directory), "IN_BOTH": "environment"}
    settings = APPS / "web" / "sample.settings.json"
    with launch(APPS / "web", directory / "state", env, settings_file=settings) as host:
        yield Client(host, directory)


def get(web: Client, path: str, method: str = "GET", **options: object) -> requests.Response:
    return web.http.request(method, web.url(path), timeout=30, **options)  # type: ignore[arg-type]


def test_route_query_and_headers_reach_the_function(web: Client) -> None:
    answer = get(web, "api/seen/12/a%20b%2Fc?x=1&x=2&y=%C3%BC+v&z=", headers={"X-Mixed-Case": "Value"})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Served-By"] == "sample"
    seen = answer.json()
    assert seen["method"] == "GET"
    assert seen["route"] == {"id": "12", "name": "a b/c"}
    assert seen["params"] == {"x": "1,2", "y": "ü v", "z": ""}
    assert seen["headers"]["x-mixed-case"] == "Value"
    assert seen["url"] == web.url("api/seen/12/a%20b%2Fc?x=1&x=2&y=%C3%BC+v&z=")
    assert seen["thread"].startswith("function")
    assert get(web, "API/Seen/12").json()["route"] == {"id": "12"}


def test_a_literal_route_goes_before_a_parameter(web: Client) -> None:
    seen = get(web, "api/seen/special").json()
    assert seen["function"] == "special"
    assert uuid.UUID(seen["invocation"])
    assert seen["directory"] == str(APPS / "web")
    assert seen["thread"] == "MainThread"


@pytest.mark.parametrize("path", ["api/seen/notanumber", "api/nowhere", "seen/1", "api/seen", "api/seen/1/2/3"])
def test_what_matches_no_route_is_404(web: Client, path: str) -> None:
    assert get(web, path).status_code == 404


def test_another_method_is_404_as_on_the_platform(web: Client) -> None:
    assert get(web, "api/files/x", "DELETE").status_code == 404
    assert get(web, "api/files/x", "HEAD").status_code == 404
    for method in ("GET", "POST", "DELETE", "PATCH", "PUT", "OPTIONS"):
        assert get(web, "api/seen/1", method).json()["method"] == method


def test_a_catch_all(web: Client) -> None:
    assert get(web, "api/files/a/b/c.txt").json()["route"] == {"rest": "a/b/c.txt"}
    assert get(web, "api/files").json()["route"] == {}


def test_binary_bodies(web: Client) -> None:
    body = os.urandom(3_000_000)
    seen = get(web, "api/files/x", "PUT", data=body).json()
    assert (seen["size"], seen["sha"]) == (len(body), hashlib.sha256(body).hexdigest())
    seen = get(web, "api/files/x", "PUT", data=iter([b"chunk"] * 10)).json()
    assert seen["size"] == 50


def test_json_and_forms(web: Client) -> None:
    assert get(web, "api/json", "POST", json={"a": "ü"}).json() == {"a": "ü"}
    assert get(web, "api/json", "POST", data="{").status_code == 400
    assert get(web, "api/json", "POST").status_code == 400
    answer = get(web, "api/form", "POST", data={"a": "1"}, files={"f": b"12345"}).json()
    assert answer == {"form": {"a": "1"}, "files": {"f": 5}}


def test_text_answers_and_default_routes(web: Client) -> None:
    answer = get(web, "api/no_route", "POST")
    assert (answer.status_code, answer.text) == (200, "just text")
    assert answer.headers["Content-Type"].startswith("text/plain")


def test_head(web: Client) -> None:
    answer = get(web, "api/head", "HEAD")
    assert (answer.status_code, answer.content, answer.headers["X-Mine"]) == (200, b"", "yes")
    assert answer.headers["Content-Length"] == "5"
    assert get(web, "api/head").content == b"12345"


def test_cookies_and_no_content(web: Client) -> None:
    answer = requests.get(web.url("api/cookies"), timeout=30)
    assert (answer.status_code, answer.content) == (204, b"")
    assert dict(answer.cookies) == {"a": "1", "b": "2"}


def test_an_exception_is_an_empty_500_and_a_traceback_in_the_log(web: Client) -> None:
    for path in ("api/raises", "api/nothing"):
        answer = get(web, path)
        assert (answer.status_code, answer.content) == (500, b"")
    assert "ValueError: on purpose" in web.host.log()
    assert "returned NoneType" in web.host.log()


def test_a_large_answer_is_not_copied(web: Client) -> None:
    before_kib = int(get(web, "api/memory").text)
    size_mib = 256
    received = 0
    with get(web, f"api/large/{size_mib}", stream=True) as answer:
        assert answer.headers["Content-Length"] == str(size_mib * 1024 * 1024)
        for chunk in answer.iter_content(1024 * 1024):
            received += len(chunk)
    assert received == size_mib * 1024 * 1024
    # The body itself and one slice on its way; a second copy would be 256 MiB more.
    assert int(get(web, "api/memory").text) - before_kib < (size_mib + 64) * 1024


def test_a_body_over_the_limit_is_413(web: Client) -> None:
    head = {"Content-Length": str(101 * 1024 * 1024)}
    prepared = requests.Request("PUT", web.url("api/files/x"), headers=head).prepare()
    prepared.headers["Content-Length"] = head["Content-Length"]
    assert requests.Session().send(prepared, timeout=30).status_code == 413


def test_settings_become_environment_variables(web: Client) -> None:
    assert get(web, "api/settings").json() == {
        "FROM_FILE": "file",
        "IN_BOTH": "environment",
        "A_NUMBER": "5",
        "A_FLAG": "true",
        "URL": "http://x//y",
        "AZURE_FUNCTIONS_ENVIRONMENT": "Development",
    }


def test_cors(web: Client) -> None:
    answer = get(web, "api/head", headers={"Origin": "https://good.example"})
    assert answer.headers["Access-Control-Allow-Origin"] == "https://good.example"
    assert "Access-Control-Allow-Origin" not in get(web, "api/head", headers={"Origin": "https://bad.example"}).headers
    preflight = {"Origin": "https://good.example", "Access-Control-Request-Method": "PUT"}
    answer = get(web, "api/files/x", "OPTIONS", headers=preflight)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Methods"]) == (204, "PUT")


def test_it_listens_on_the_loopback_interface_only(web: Client) -> None:
    port = f":{int(web.host.url.rpartition(':')[2]):04X}"
    with open("/proc/net/tcp") as file:  # noqa: PTH123
        listening = [line.split()[1] for line in file if line.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(port)] == [f"0100007F{port}"]


def test_the_list_of_functions(web: Client) -> None:
    log = web.host.log()
    assert f"\tfiles: [GET,PUT] {web.url('api/files/{*rest}')}" in log
    assert f"\tno_route: [POST] {web.url('api/no_route')}" in log


@pytest.mark.parametrize(
    ("template", "path", "expected"),
    [
        ("a/{id:guid?}", "a/8f14e45f-ceea-467f-a0e6-0123456789ab", {"id": "8f14e45f-ceea-467f-a0e6-0123456789ab"}),
        ("a/{id:guid?}", "a/x", None),
        ("a/{id:guid?}", "a", {}),
        ("a/{id:guid?}", "a/", {}),
        ("a/{n:int:min(3)}", "a/3", {"n": "3"}),
        ("a/{n:int:min(3)}", "a/2", None),
        ("a/{n:range(1,5)}", "a/5", {"n": "5"}),
        ("a/{n:length(2,3)}", "a/1234", None),
        ("a/{n:alpha}", "a/ab1", None),
        ("a/{n:bool}", "a/True", {"n": "True"}),
        ("a/{n=five}", "a", {"n": "five"}),
        ("a/{name}.{ext}", "a/x.tar.gz", {"name": "x", "ext": "tar.gz"}),
        ("a/{p:regex(^\\d{{3}}$)}", "a/123", {"p": "123"}),
        ("a/{p:regex(^\\d{{3}}$)}", "a/1234", None),
        ("a/{p:regex(^[[a-c]]+$)}/b", "a/zz/b", None),
        ("{*rest}", "", {}),
        ("{**rest}", "x/y", {"rest": "x/y"}),
        ("A/b", "a/B", {}),
    ],
)
def test_route_templates(template: str, path: str, expected: dict[str, str] | None) -> None:
    assert compile_route(template).match("/" + path) == expected


@pytest.mark.parametrize("template", ["a/{id", "a/{id:color}", "a/{}"])
def test_bad_templates_are_refused(template: str) -> None:
    with pytest.raises(HostError, match="route"):
        compile_route(template)
