"""The API as contracts describe it: documents, filters, pages, content types, its own description."""

import json
import re

import pytest

from tests.support.platform import REPOSITORY, Platform, make_files

_PROGRESS = {"planned", "planning_done", "uploaded", "skipped", "failed", "bytes_planned", "bytes_done", "items_per_s",
             "bytes_per_s", "eta_s", "success_rate"}  # fmt: skip
_RECORD = {"path", "target", "status", "size_bytes", "hash", "hash_kind", "source_version", "attempts", "error_code",
           "error_detail", "batch", "finished_at"}  # fmt: skip


@pytest.fixture(scope="module")
def runs(platform: Platform) -> list[str]:
    """Finished runs of three jobs, oldest first; one ended with a failure."""
    found = []
    for name in ("api-a", "api-b", "api-a", "api"):
        make_files(platform.source(name), 6, folders=2)
        if name == "api-b":
            (platform.source(name) / "bad.").write_bytes(b"")
        found.append(platform.run(platform.spec(name), "completed", "completed_with_failures")["id"])
    return found


def test_the_answer_to_a_start(platform: Platform) -> None:
    make_files(platform.source("start"), 2)
    answer = platform.post("/migrations", platform.spec("start"))
    assert answer.status == 202
    document = answer.json
    assert re.fullmatch(r"files-start-\d{8}T\d{6}Z", document["id"])
    assert (document["kind"], document["name"]) == ("files", "start")
    assert {"statusQueryGetUri", "sendEventPostUri", "terminatePostUri", "purgeHistoryDeleteUri"} <= set(document)
    assert answer.headers["location"] == document["links"]["self"] == f"{platform.api}/migrations/{document['id']}"
    assert int(answer.headers["retry-after"]) > 0
    platform.wait(document["id"], "completed")


def test_the_status_document(platform: Platform, runs: list[str]) -> None:
    document = platform.status(runs[0])
    assert {
        "id",
        "kind",
        "name",
        "status",
        "started_at",
        "updated_at",
        "ended_at",
        "progress",
        "error",
        "links",
    } <= set(document)
    assert set(document["progress"]) >= _PROGRESS
    assert document["progress"]["planned"] == document["progress"]["uploaded"] == 6
    assert document["progress"]["bytes_planned"] == document["progress"]["bytes_done"] > 0
    assert document["progress"]["success_rate"] == 1.0
    assert document["progress"]["eta_s"] == 0
    assert document["error"] is None
    for moment in ("started_at", "updated_at", "ended_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", document[moment]), moment
    assert {"self", "manifest", "pause"} <= set(document["links"])
    assert platform.status(runs[1])["progress"]["success_rate"] == pytest.approx(6 / 7, abs=1e-6)


def test_list_newest_first_with_filters(platform: Platform, runs: list[str]) -> None:
    def ids(query: str) -> list[str]:
        answer = platform.get(f"/migrations?{query}")
        assert answer.status == 200, answer.body
        return [run["id"] for run in answer.json["value"]]

    shown = platform.get("/migrations?top=500").json["value"]
    assert set(runs) <= {run["id"] for run in shown}
    moments = [run["started_at"] for run in shown]
    assert moments == sorted(moments, reverse=True)
    assert ids("name=api-a") == [runs[2], runs[0]]
    assert ids("name=api") == [runs[3]], "a name is not a prefix"
    assert runs[1] in ids("status=completed_with_failures")
    assert runs[0] not in ids("status=completed_with_failures")
    assert set(runs) <= set(ids("kind=files&top=500"))
    assert ids("name=nobody") == []
    for query, field in (("kind=x", "kind"), ("status=x", "status"), ("top=0", "top"), ("top=x", "top"),
                         ("top=501", "top"), ("top=-1", "top")):  # fmt: skip
        answer = platform.get(f"/migrations?{query}")
        assert (answer.status, answer.fields) == (400, [field])


@pytest.mark.parametrize("top", ["%C2%B2", "%D9%A3", "9" * 5000, "1_0", "+1"])
def test_what_only_looks_like_a_number_is_refused(platform: Platform, runs: list[str], top: str) -> None:
    """Digits of other scripts, more of them than a number may have, and what only a programming language reads."""
    for path in ("/migrations", f"/migrations/{runs[0]}/items"):
        answer = platform.get(f"{path}?top={top}")
        assert (answer.status, answer.fields) == (400, ["top"])


def test_the_list_goes_on_where_it_ended(platform: Platform, runs: list[str]) -> None:
    whole = [run["id"] for run in platform.get("/migrations?top=500").json["value"]]
    assert set(runs) <= set(whole)
    seen: list[str] = []
    query = "/migrations?top=1"
    while True:
        document = platform.get(query).json
        assert len(document["value"]) <= 1
        seen += [run["id"] for run in document["value"]]
        if document["continuation"] is None:
            break
        query = f"/migrations?top=1&continuation={document['continuation']}"
    assert seen == whole


def test_items_by_page_and_status(platform: Platform, runs: list[str]) -> None:
    seen = []
    query = f"/migrations/{runs[1]}/items?top=2"
    while True:
        document = platform.get(query).json
        assert len(document["value"]) <= 2
        seen += document["value"]
        if document["continuation"] is None:
            break
        query = f"/migrations/{runs[1]}/items?top=2&continuation={document['continuation']}"
    assert [item["path"] for item in seen] == [item["path"] for item in platform.manifest(runs[1])["items"]]
    assert all(set(item) >= _RECORD for item in seen)
    failed = platform.get(f"/migrations/{runs[1]}/items?status=failed").json["value"]
    assert [item["path"] for item in failed] == ["bad."]
    for query, field in (("status=x", "status"), ("top=0", "top"), ("continuation=../x", "continuation")):
        answer = platform.get(f"/migrations/{runs[1]}/items?{query}")
        assert (answer.status, answer.fields) == (400, [field])


def test_the_manifest_in_all_formats(platform: Platform, runs: list[str]) -> None:
    types = {"json": "application/json", "csv": "text/csv", "md": "text/markdown", "html": "text/html"}
    for form, content_type in types.items():
        answer = platform.get(f"/migrations/{runs[1]}/manifest?format={form}")
        assert answer.status == 200
        assert answer.headers["content-type"].startswith(content_type)
        assert b"bad." in answer.body.replace(b"\\", b"")
    manifest = platform.manifest(runs[1])
    assert {"id", "kind", "name", "status", "started_at", "ended_at", "spec", "counts", "bytes", "verification",
            "app_version", "error", "items"} <= set(manifest)  # fmt: skip
    assert all(set(item) >= _RECORD for item in manifest["items"])
    answer = platform.get(f"/migrations/{runs[1]}/manifest?format=pdf")
    assert (answer.status, answer.fields) == (400, ["format"])


def test_health_tells_what_is_wrong(platform: Platform) -> None:
    answer = platform.get("/health")
    assert (answer.status, answer.json["ready"]) == (200, True)
    assert set(answer.json["checks"]) >= {"run_store", "durable", "onelake_token"}
    right = dict(platform.environment)
    platform.restart_host(CREDENTIAL_ONELAKE='{"kind": "client_secret"}')
    try:
        answer = platform.get("/health")
        assert (answer.status, answer.json["ready"]) == (503, False)
        assert "tenant_id" in answer.json["checks"]["onelake_token"]["message"]
        assert answer.json["checks"]["run_store"]["ready"]
    finally:
        platform.environment = right
        platform.restart_host()


def test_the_description_names_every_route(platform: Platform) -> None:
    document = platform.get("/openapi.json").json
    assert document["openapi"].startswith("3.1")
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    log = platform.host.log()
    registered = set()
    for methods, path in re.findall(r"\[([A-Z,]+)\] http://[^/]+/api(/\S*)", log):
        for method in methods.split(","):
            if path == "/migrations/{id}/{action}":
                registered |= {(method, f"/migrations/{{id}}/{action}")
                               for action in ("pause", "resume", "cancel", "retry-failed")}  # fmt: skip
            else:
                registered.add((method, path))
    assert len(registered) >= 16
    assert registered == described
    text = json.dumps(document)
    references = set(re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', text))
    assert references <= set(document["components"]["schemas"])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            declared = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
            assert declared == set(re.findall(r"{(\w+)}", path)), (method, path)


def test_settings_are_described() -> None:
    """Nothing that the host of these tests is told is missing from the settings' page."""
    page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    for name in ("RUN_STORE_URL", "FOLDER_SOURCE_ROOTS", "SCHEDULE_TICK", "RETRY_FIRST_DELAY_S", "RETRY_ATTEMPTS",
                 "ONELAKE_DFS_URL", "ONELAKE_SCOPE", "CA_BUNDLE"):  # fmt: skip
        assert name in page, name
