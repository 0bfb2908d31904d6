"""Each fault of the plan, the counters and the journal."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import ssl
from pathlib import Path

import pytest
from azure.core.exceptions import ClientAuthenticationError

from local.emulators.estate import ConfigurationMistake
from local.emulators.faults import FaultPlan, parse_rules
from local.emulators.launch import EmulatorsFailed, RunningEmulators, launch
from tests.emulators.wire_client import FABRIC, WireClient, credential, quoted

CUT = (ConnectionError, http.client.HTTPException, ssl.SSLError)


def test_throttle_and_unavailable(emulators: RunningEmulators, wire: WireClient, folder: str) -> None:
    target = f"/Migration/{quoted(folder)}/x?resource=file"
    emulators.set_faults(
        [
            {"fault": "throttle", "operation": "create", "times": 1, "retry_after_s": 0},
            {"fault": "unavailable", "operation": "create", "times": 1, "retry_after_s": 1.2},
            {"fault": "server_error", "operation": "create", "times": 1},
            {"fault": "capacity_paused", "operation": "create", "times": 1},
        ]
    )
    found = []
    for _ in range(5):
        answer = wire.send("PUT", target)
        found.append((answer.status, answer.code, answer.headers.get("retry-after")))
    assert found == [
        (429, "CapacityLimitExceeded", "0"),
        (503, "ServerBusy", "2"),
        (500, "InternalError", None),
        (403, "CapacityNotActive", None),
        (201, "", None),
    ]


def test_reset_before(emulators: RunningEmulators, wire: WireClient, folder: str) -> None:
    target = f"/Migration/{quoted(folder)}/x"
    emulators.set_faults([{"fault": "reset_before", "operation": "create"}])
    with pytest.raises(CUT):
        wire.send("PUT", f"{target}?resource=file")
    emulators.set_faults([])
    assert wire.send("HEAD", target).status == 404


def test_reset_after(emulators: RunningEmulators, wire: WireClient, folder: str) -> None:
    target = f"/Migration/{quoted(folder)}/x"
    wire.put_file(f"{folder}/x", b"")
    emulators.set_faults([{"fault": "reset_after", "operation": "append_flush"}])
    with pytest.raises(CUT):
        wire.send("PATCH", f"{target}?action=append&position=0&flush=true", body=b"there")
    assert wire.send("GET", target).body == b"there"


def test_damage_on_the_way_in(emulators: RunningEmulators, wire: WireClient, folder: str) -> None:
    target = f"/Migration/{quoted(folder)}/x"
    append = f"{target}?action=append&position=0&flush=true"
    wire.put_file(f"{folder}/x", b"")
    emulators.set_faults([{"fault": "corrupt_body", "operation": "append_flush"}])
    digest = base64.b64encode(hashlib.md5(b"data", usedforsecurity=False).digest()).decode()
    answer = wire.send("PATCH", append, {"Content-MD5": digest}, b"data")
    assert (answer.status, answer.code) == (400, "Md5Mismatch")
    assert wire.send("GET", target).body == b""
    assert wire.send("PATCH", append, body=b"data").status == 202
    assert wire.send("GET", target).body == bytes([ord("d") ^ 0xFF]) + b"ata"


@pytest.mark.parametrize("size_bytes", [100, 1_000_000])
@pytest.mark.parametrize("url_key", ["onelake_dfs_url", "onelake_blob_url"])
def test_damage_on_the_way_out(
    emulators: RunningEmulators, wire: WireClient, folder: str, size_bytes: int, url_key: str
) -> None:
    target = f"/Migration/{quoted(folder)}/x"
    content = b"y" * size_bytes
    wire.put_file(f"{folder}/x", content)
    emulators.set_faults([{"fault": "corrupt_body", "operation": "read", "times": 1}])
    body = wire.send("GET", target, url_key=url_key).body
    assert len(body) == size_bytes
    assert body != content
    emulators.set_faults([{"fault": "short_body", "operation": "read", "times": 1}])
    with pytest.raises(http.client.IncompleteRead) as caught:
        wire.send("GET", target, url_key=url_key)
    assert len(caught.value.partial) == size_bytes // 2
    assert wire.send("GET", target, url_key=url_key).body == content


def test_other_services(emulators: RunningEmulators, wire: WireClient) -> None:
    wire.token(scope=FABRIC)
    emulators.set_faults(
        [
            {"service": "fabric", "fault": "throttle", "retry_after_s": 7, "times": 1},
            {"service": "fabric", "fault": "expired_token", "times": 1},
            {"service": "entra", "operation": "token", "fault": "server_error"},
        ]
    )
    answer = wire.send("GET", "/v1/workspaces", scope=FABRIC, url_key="fabric_url")
    assert (answer.status, answer.json["errorCode"], answer.headers["retry-after"]) == (429, "RequestBlocked", "7")
    answer = wire.send("GET", "/v1/workspaces", scope=FABRIC, url_key="fabric_url")
    assert (answer.status, answer.json["errorCode"]) == (401, "TokenExpired")
    with pytest.raises(ClientAuthenticationError, match="500"):
        credential(emulators).get_token("https://storage.azure.com/.default")


def test_paths_and_counts(emulators: RunningEmulators, wire: WireClient, folder: str) -> None:
    rule = {"fault": "unavailable", "path": f"Migration/{folder}/bad*", "after": 1, "times": 2}
    emulators.set_faults([rule, {"fault": "latency", "latency_ms": 1}])
    bad = [wire.send("PUT", f"/Migration/{quoted(folder)}/bad-{n}?resource=file").status for n in range(5)]
    assert bad == [201, 503, 503, 201, 201]
    assert wire.send("PUT", f"/Migration/{quoted(folder)}/good?resource=file").status == 201
    assert emulators.fault_hits() == [2, 4]


def test_a_listing_goes_by_names_however_it_was_asked(
    emulators: RunningEmulators, wire: WireClient, folder: str
) -> None:
    workspace = emulators.addresses["workspaces"][0]
    wire.put_file(f"{folder}/x", b"")
    emulators.set_faults([{"fault": "unavailable", "operation": "list", "path": f"Migration/{folder}"}])
    directory = quoted(folder.replace("Landing.Lakehouse", workspace["items"][0]["id"]))
    query = "resource=filesystem&recursive=true&directory="
    assert wire.send("GET", f"/{workspace['id']}?{query}{directory}").status == 503
    assert wire.send("GET", f"/Migration?{query}{quoted(folder)}").status == 503
    assert wire.send("GET", f"/Migration?{query}{quoted(folder)}/x").status == 404


def test_a_refusal_reaches_a_client_that_is_still_sending(
    emulators: RunningEmulators, wire: WireClient, folder: str
) -> None:
    wire.put_file(f"{folder}/x", b"")
    emulators.set_faults([{"fault": "expired_token", "operation": "append"}])
    target = f"/Migration/{quoted(folder)}/x?action=append&position=0"
    assert wire.send("PATCH", target, body=b"x" * 20_000_000).status == 401


def test_one_seed_one_sequence() -> None:
    rules = parse_rules([{"fault": "throttle", "probability": 0.3}, {"fault": "unavailable", "probability": 0.3}])

    def sequence(seed: int) -> list[str]:
        plan = FaultPlan(rules, seed)
        verdicts = [plan.draw("onelake", "create", "x").rule for _ in range(200)]
        return [rule.fault if rule is not None else "" for rule in verdicts]

    assert sequence(1) == sequence(1)
    assert sequence(1) != sequence(2)
    assert 30 < sequence(1).count("throttle") < 90


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([{"fault": "throttle"}, {"fault": "throttle", "oops": 1}], "rule 2, key 'oops'"),
        ([{"fault": "explode"}], "rule 1, key 'fault'"),
        ([{"fault": "throttle", "probability": 2}], "rule 1, key 'probability'"),
        ([{"fault": "throttle", "operation": "copy"}], "rule 1, key 'operation'"),
        ([{}], "rule 1, key 'fault'"),
        ({"a": 1}, "the document"),
    ],
)
def test_a_wrong_plan_says_where(emulators: RunningEmulators, document: object, told: str) -> None:
    with pytest.raises(ConfigurationMistake, match=told):
        parse_rules(document)
    if isinstance(document, list):
        with pytest.raises(EmulatorsFailed, match=told):
            emulators.set_faults(document)


def test_wrong_starts(emulators: RunningEmulators, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("- {fault: throttle, sometimes: true}")
    with pytest.raises(EmulatorsFailed, match=r"^The fault plan is wrong at rule 1, key 'sometimes'[^\n]*$"):
        launch(tmp_path / "a", fault_plan=plan)
    ports = tmp_path / "b" / "state" / "ports.json"
    ports.parent.mkdir(parents=True)
    taken = int(emulators.addresses["fabric_url"].rpartition(":")[2])
    ports.write_text(json.dumps({"fabric": taken}))
    with pytest.raises(EmulatorsFailed, match=rf"^Port {taken} on 127\.0\.0\.1 cannot be opened: [^\n]*$"):
        launch(tmp_path / "b")
    with pytest.raises(EmulatorsFailed, match=r"^Other emulators are running on [^\n]*$"):
        launch(emulators.root)
    config = tmp_path / "config.yaml"
    config.write_text("tenant_id: t\nworkspaces: []\nclients: []\ncolour: red\n")
    with pytest.raises(EmulatorsFailed, match=r"^The configuration .* is wrong at colour: [^\n]*$"):
        launch(tmp_path / "c", config=config)


def test_journal_and_stats(emulators: RunningEmulators, wire: WireClient, folder: str) -> None:
    emulators.reset_stats()
    wire.put_file(f"{folder}/x", b"twelve bytes", **{"If-None-Match": "*"})
    wire.send("PUT", f"/Migration/{quoted(folder)}/x?resource=file", {"If-None-Match": "*"})
    effects = [entry for entry in emulators.journal() if entry["path"] == f"Migration/{folder}/x"]
    assert [(entry["operation"], entry["status"], entry["bytes"]) for entry in effects] == [
        ("create", 201, 0),
        ("append_flush", 202, 12),
        ("create", 409, 0),
    ]
    assert (effects[0]["if_none_match"], effects[2]["error_code"]) == ("*", "PathAlreadyExists")
    assert emulators.stats()["onelake"] == {"append_flush": {"202": 1}, "create": {"201": 1, "409": 1}}
