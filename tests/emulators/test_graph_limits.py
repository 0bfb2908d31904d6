"""Resource units, throttling, and the fault plan over Graph and its downloads."""

from __future__ import annotations

import http.client
import ssl
from collections import Counter
from typing import Any

import pytest

from local.emulators.launch import EmulatorsFailed
from tests.emulators.graph_client import MIGRATOR, GraphWire, LibraryWire
from tests.emulators.test_graph import batch, refusal

CUT = (ConnectionError, http.client.HTTPException, ssl.SSLError)
A_LONG_MINUTE_S = 1000


@pytest.fixture
def counted(library: LibraryWire) -> LibraryWire:
    """A library, with every counter at nought."""
    library.control.reset_counters()
    return library


def rate(headers: dict[str, str]) -> dict[str, int]:
    return {name: int(value) for name, value in headers.items() if name.startswith(("ratelimit-", "retry-after"))}


def test_what_requests_cost(counted: LibraryWire) -> None:
    _, link = counted.walk()
    counted.walk(link)
    counted.graph.json(f"{counted.url}/root")
    counted.graph.json(f"{counted.url}/root/children")
    counted.graph.json(counted.url)
    counted.graph.get("/v1.0/sites/contoso.sharepoint.com")
    counted.graph.get("/v1.0/sites/contoso.sharepoint.com:/sites/finance:/drives")
    counted.graph.get("/v1.0/sites/contoso.sharepoint.com:/sites/finance:/permissions")
    item = counted.control.put(counted.name, "a.txt", b"x")
    counted.graph.fetch(counted.location("a.txt"))
    got = batch(counted.graph, {"id": "1", "method": "GET", "url": f"/drives/{counted.drive_id}/items/{item['id']}"})
    assert got["1"]["status"] == 200
    counters = counted.control.counters()
    assert counters["requests"] == {
        "site": 1,
        "drives": 1,
        "drive": 1,
        "item": 2,
        "children": 1,
        "delta": 1,
        "delta_token": 1,
        "content": 1,
        "download": 1,
        "permissions": 1,
        "batch": 1,
    }
    assert (
        counters["units"] == sum(minute["units"] for minute in counters["minutes"]) == 1 + 2 + 1 + 2 + 2 + 2 + 1 + 1 + 5
    )
    assert {minute["client_id"] for minute in counters["minutes"]} == {MIGRATOR}
    assert counters["throttled"] == {}


def test_a_limit_is_told_late_and_kept(counted: LibraryWire) -> None:
    counted.control.behave(units_per_minute=10, minute_s=A_LONG_MINUTE_S)
    answers = [counted.graph.get(f"{counted.url}/root") for _ in range(12)]
    assert [answer.status for answer in answers] == [200] * 10 + [429] * 2
    assert [rate(answer.headers) for answer in answers[:7]] == [{}] * 7
    assert [rate(answer.headers)["ratelimit-remaining"] for answer in answers[7:]] == [2, 1, 0, 0, 0]
    told = rate(answers[-1].headers)
    assert told["ratelimit-limit"] == 10
    assert told["retry-after"] == told["ratelimit-reset"] > A_LONG_MINUTE_S / 2
    assert refusal(answers[-1]) == (429, "activityLimitReached", "throttledRequest")
    (minute,) = counted.control.counters()["minutes"]
    assert (minute["units"], minute["requests"], minute["throttled"]) == (12, 12, 2)


def test_each_application_has_its_own_limit(counted: LibraryWire) -> None:
    counted.control.behave(units_per_minute=2, minute_s=A_LONG_MINUTE_S)
    reader = GraphWire(counted.graph.emulators, "reader")
    for graph in (counted.graph, reader):
        statuses = [graph.get(f"{counted.url}/root").status for _ in range(3)]
        assert statuses == [200, 200, 429]


def test_a_minute_ends(counted: LibraryWire) -> None:
    counted.control.behave(units_per_minute=1, minute_s=0.01)
    statuses = Counter(counted.graph.get(f"{counted.url}/root").status for _ in range(10))
    assert statuses[200] > 1


@pytest.mark.parametrize(("licences", "units"), [(0, 1250), (1000, 1250), (1001, 2500), (50000, 5000), (50001, 6250)])
def test_the_limit_follows_from_the_licences(counted: LibraryWire, licences: int, units: int) -> None:
    counted.control.behave(licences=licences, minute_s=A_LONG_MINUTE_S)
    calls = [{"id": str(number), "method": "GET", "url": "/sites/root/permissions"} for number in range(20)]
    told = ""
    while not told:
        told = next(
            (
                one["headers"]["RateLimit-Limit"]
                for one in batch(counted.graph, *calls).values()
                if "RateLimit-Limit" in one["headers"]
            ),
            "",
        )
    assert int(told) == units


def test_throttled_from_the_first_request(counted: LibraryWire) -> None:
    counted.control.behave(throttle_first=2, retry_after_s=7)
    answers = [counted.graph.get(f"{counted.url}/root/delta") for _ in range(3)]
    assert [(answer.status, rate(answer.headers)) for answer in answers] == [
        (429, {"retry-after": 7}),
        (429, {"retry-after": 7}),
        (200, {}),
    ]
    counters = counted.control.counters()
    assert (counters["throttled"], counters["units"]) == ({"delta": 2}, 6)
    counted.control.behave(throttle_first=0, units_per_minute=0)
    assert counted.graph.get(f"{counted.url}/root").status == 429


def test_in_a_batch_each_request_is_throttled_for_itself(counted: LibraryWire) -> None:
    counted.control.behave(units_per_minute=2, minute_s=A_LONG_MINUTE_S)
    got = batch(
        counted.graph, *({"id": str(n), "method": "GET", "url": f"/drives/{counted.drive_id}"} for n in range(3))
    )
    assert [got[str(n)]["status"] for n in range(3)] == [200, 200, 429]
    assert int(got["2"]["headers"]["Retry-After"]) > 0


def test_requests_that_do_not_say_whose_they_are_are_counted(counted: LibraryWire) -> None:
    for agent in ("NONISV|Contoso|Migration/1.0", "ISV|Contoso|Migration/1.0", "python"):
        counted.graph.get(f"{counted.url}/root", {"User-Agent": agent})
    assert counted.control.counters()["undecorated"] == 1


def test_behaviour_that_makes_no_sense(graph: GraphWire) -> None:
    with pytest.raises(EmulatorsFailed, match="units_per_minute"):
        graph.control.behave(units_per_minute=-1)
    with pytest.raises(EmulatorsFailed, match="colour"):
        graph.control.behave(colour="red")


# the fault plan


def faults(library: LibraryWire, *rules: dict[str, Any]) -> None:
    library.graph.emulators.set_faults(
        [{"service": "graph", "path": f"sites/scratch/{library.name}*", **rule} for rule in rules]
    )


def test_faults_of_graph(library: LibraryWire) -> None:
    faults(
        library,
        {"operation": "delta", "fault": "throttle", "times": 1, "retry_after_s": 3},
        {"operation": "delta", "fault": "unavailable", "times": 1, "retry_after_s": 0},
        {"operation": "delta", "fault": "server_error", "times": 1},
        {"operation": "delta", "fault": "expired_token", "times": 1},
    )
    answers = [library.graph.get(f"{library.url}/root/delta") for _ in range(5)]
    assert [refusal(answer) for answer in answers[:4]] == [
        (429, "activityLimitReached", "throttledRequest"),
        (503, "serviceNotAvailable", None),
        (500, "generalException", None),
        (401, "InvalidAuthenticationToken", None),
    ]
    assert [answer.headers.get("retry-after") for answer in answers] == ["3", "0", None, None, None]
    assert answers[4].status == 200


def test_a_resync_at_a_chosen_page(library: LibraryWire) -> None:
    faults(library, {"operation": "delta", "fault": "resync", "after": 2, "times": 1})
    url = f"{library.url}/root/delta?$top=2"
    for _ in range(2):
        url = library.graph.json(url)["@odata.nextLink"]
    answer = library.graph.get(url)
    assert refusal(answer) == (410, "resyncRequired", "resyncChangesApplyDifferences")
    assert len(library.walk(answer.headers["location"])[0]) == 9


def test_faults_of_downloads(library: LibraryWire) -> None:
    library.control.put(library.name, "a.bin", size=5000)
    content = library.control.content(library.name, "a.bin")
    location = library.location("a.bin")
    faults(
        library,
        {"operation": "download", "fault": "corrupt_body", "times": 1},
        {"operation": "download", "fault": "expired_token", "times": 1},
        {"operation": "download", "fault": "throttle", "times": 1, "retry_after_s": 1},
        {"operation": "download", "fault": "short_body", "times": 1},
        {"operation": "download", "fault": "reset_before", "times": 1},
        {"operation": "download", "fault": "reset_after", "times": 1},
    )
    corrupt = library.graph.fetch(location).body
    assert len(corrupt) == len(content)
    assert corrupt != content
    assert library.graph.fetch(location).status == 401
    assert library.graph.fetch(location).status == 429
    with pytest.raises(http.client.IncompleteRead) as caught:
        library.graph.fetch(location)
    assert caught.value.partial == content[:2500]
    for _ in range(2):
        with pytest.raises(CUT):
            library.graph.fetch(location)
    assert library.graph.fetch(location).body == content


def test_a_large_download_can_be_spoiled_too(library: LibraryWire) -> None:
    library.control.put(library.name, "a.bin", size=3_000_000)
    content = library.control.content(library.name, "a.bin")
    location = library.location("a.bin")
    faults(
        library,
        {"operation": "download", "fault": "short_body", "times": 1},
        {"operation": "download", "fault": "corrupt_body", "times": 1},
    )
    with pytest.raises(http.client.IncompleteRead) as caught:
        library.graph.fetch(location)
    assert caught.value.partial == content[:1_500_000]
    assert library.graph.fetch(location).body != content
    assert library.graph.fetch(location).body == content


def test_faults_go_by_path(library: LibraryWire) -> None:
    for name in ("good.txt", "bad.txt"):
        library.control.put(library.name, name, b"x")
    rule = {"service": "graph", "operation": "content", "fault": "unavailable"}
    library.graph.emulators.set_faults([{**rule, "path": f"sites/scratch/{library.name}/bad*"}])
    statuses = {
        name: library.graph.get(f"{library.url}/root:/{name}:/content").status for name in ("good.txt", "bad.txt")
    }
    assert statuses == {"good.txt": 302, "bad.txt": 503}


def test_calls_are_counted_by_operation(library: LibraryWire) -> None:
    library.graph.emulators.reset_stats()
    library.walk()
    library.control.put(library.name, "a.txt", b"x")
    library.graph.fetch(library.location("a.txt"))
    counted = library.graph.emulators.stats()["graph"]
    assert counted == {"delta": {"200": 1}, "content": {"302": 1}, "download": {"200": 1}}
