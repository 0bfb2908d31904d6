"""The three mistakes that cost the case study its days: each stops the run at once and says what to change."""

from collections.abc import Iterator

import pytest

from tests.support.platform import Platform, files_below, make_files


@pytest.fixture
def mistaken(platform: Platform) -> Iterator[Platform]:
    """The platform with a source of many files; its settings are put right again after the test."""
    right = dict(platform.environment)
    if not files_below(platform.source("mistake")):
        make_files(platform.source("mistake"), 200)
    platform.emulators.reset_stats()
    yield platform
    platform.environment = right
    platform.restart_host()


def _assert_stopped(platform: Platform, code: str, *remedies: str) -> None:
    run = platform.start(platform.spec("mistake"))
    document = platform.wait(run, "failed")
    assert document["error"]["code"] == code
    for remedy in remedies:
        assert remedy in document["error"]["message"]
    assert document["progress"]["planned"] == document["progress"]["failed"] == 0
    manifest = platform.manifest(run)
    assert manifest["status"] == "failed"
    assert manifest["error"]["code"] == code
    assert manifest["items"] == []
    for form in ("csv", "md", "html"):
        assert platform.get(f"/migrations/{run}/manifest?format={form}").status == 200
    assert remedies[0].encode() in platform.get(f"/migrations/{run}/manifest?format=html").body
    calls = sum(count for service in platform.emulators.stats().values() for operation in service.values()
                for count in operation.values())  # fmt: skip
    assert calls < 40, "200 files must not be tried one by one"
    assert not platform.effects("mistake")
    assert platform.post(f"/migrations/{run}/retry-failed").status == 409


def test_the_wrong_endpoint(mistaken: Platform) -> None:
    mistaken.restart_host(ONELAKE_DFS_URL=mistaken.emulators.addresses["fabric_url"])
    _assert_stopped(mistaken, "token_rejected", "ONELAKE_DFS_URL", "https://onelake.dfs.fabric.microsoft.com")


def test_the_wrong_scope(mistaken: Platform) -> None:
    mistaken.restart_host(ONELAKE_SCOPE="https://api.fabric.microsoft.com/.default")
    _assert_stopped(mistaken, "token_rejected", "ONELAKE_SCOPE", "https://storage.azure.com/.default")


def test_no_permission(mistaken: Platform) -> None:
    mistaken.restart_host(**mistaken.emulators.environment("reader"))
    _assert_stopped(mistaken, "permission_denied", "Contributor", "workspace")


def test_mended_the_same_job_runs(platform: Platform) -> None:
    """What failed as a whole is started again; nothing of the failed runs stands in its way."""
    make_files(platform.source("mistake"), 200)
    platform.environment |= platform.emulators.environment("reader")
    platform.restart_host()
    platform.run(platform.spec("mistake"), "failed")
    platform.environment |= platform.emulators.environment()
    platform.restart_host()
    document = platform.run(platform.spec("mistake"))
    assert document["progress"]["uploaded"] == 200
    platform.assert_agreement(document["id"], "mistake")


@pytest.mark.parametrize(("setting", "value", "said"), [
    ("ONELAKE_DFS_URL", "another service", "ONELAKE_DFS_URL"),
    ("CREDENTIAL_ONELAKE", "outsider", "workspace"),
    ("CREDENTIAL_ONELAKE", "wrong secret", "secret"),
])  # fmt: skip
def test_its_relatives(mistaken: Platform, setting: str, value: str, said: str) -> None:
    """A service that knows no such paths, an identity without any role, a secret that is wrong."""
    environment = {setting: mistaken.emulators.addresses["authority_url"]}
    if value == "outsider":
        environment = mistaken.emulators.environment("outsider")
    elif value == "wrong secret":
        environment = {setting: mistaken.environment[setting].replace("emulator-only-", "emulator-wrong-")}
    mistaken.restart_host(**environment)
    document = mistaken.run(mistaken.spec("mistake"), "failed")
    assert said in document["error"]["message"], document["error"]
    assert "emulator-wrong-" not in str(document)
