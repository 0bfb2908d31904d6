"""No secret, no token, in anything that a run leaves behind: whatever went wrong in it."""

import sqlite3
from pathlib import Path

from tests.support.platform import Platform, make_files, running

_SECRETS = (b"emulator-only-", b"eyJ", b"Bearer ")


def places(platform: Platform) -> dict[str, bytes]:
    files = [file for folder in (platform.store, platform.state) for file in folder.rglob("*") if file.is_file()]
    read = {str(file.relative_to(platform.root)): file.read_bytes() for file in files}
    with sqlite3.connect(platform.state / "host.db") as database:
        read["history"] = "\n".join(database.iterdump()).encode("utf-8", "surrogatepass")
    database.close()
    return read


def test_nothing_that_a_run_leaves_behind_holds_a_secret(root: Path) -> None:
    with running(root, token_lifetime_s=2) as platform:
        make_files(platform.source("quiet"), 30)
        platform.emulators.set_faults([
            {"fault": "latency", "latency_ms": 30},
            {"fault": "expired_token", "probability": 0.05}, {"fault": "reset_after", "probability": 0.05},
            {"service": "entra", "fault": "unavailable", "probability": 0.2},
        ])  # fmt: skip
        run = platform.run(platform.spec("quiet", verify="all"))["id"]
        answers = [platform.get(f"/migrations/{run}").body, platform.get("/health").body]
        answers += [
            platform.get(f"/migrations/{run}/manifest?format={form}").body for form in ("json", "csv", "md", "html")
        ]
        platform.emulators.set_faults([])
        secret = platform.environment["CREDENTIAL_ONELAKE"]
        for environment in (
            {"ONELAKE_SCOPE": "https://api.fabric.microsoft.com/.default"},
            {"ONELAKE_DFS_URL": platform.emulators.addresses["fabric_url"]},
            {"CREDENTIAL_ONELAKE": secret.replace("emulator-only-", "emulator-only-not-")},
            {"CREDENTIAL_ONELAKE": secret.replace('"kind"', '"kin"')},
        ):
            right = dict(platform.environment)
            platform.restart_host(**environment)
            answer = platform.post("/migrations", platform.spec("quiet"))
            answers.append(answer.body)
            if answer.status == 202:
                answers.append(str(platform.wait(answer.json["id"], "failed")).encode())
                answers.append(platform.get(f"/migrations/{answer.json['id']}/manifest").body)
            answers.append(platform.get("/health").body)
            platform.environment = right
        platform.kill_host()
        found = places(platform) | {f"answer {number}": body for number, body in enumerate(answers)}
        assert len(found) > 20
        assert any(place.endswith("host.log") and data for place, data in found.items())
        leaks = {place: secret for place, data in found.items() for secret in _SECRETS if secret in data}
        assert not leaks
