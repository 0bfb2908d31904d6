"""Timer triggers."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from local.host import HostFailed
from tests.host.conftest import Client, until

YEARLY = "0 0 0 1 1 *"


def notes(client: Client, name: str) -> list[dict[str, Any]]:
    path = client.traces / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_schedules_startup_and_calls_by_hand(start_host: Callable[..., Client]) -> None:
    client = start_host("timers", YEARLY=YEARLY)
    (first,) = until(lambda: notes(client, "on_startup"), "the start")
    assert first["past_due"] is False
    assert first["schedule"] == {"AdjustForDST": True}
    assert first["status"]["Next"].endswith("-01-01T00:00:00.000000Z")
    until(lambda: len(notes(client, "every_second")) >= 2, "two occurrences")
    assert notes(client, "yearly") == notes(client, "unmonitored") == []
    answer = client.http.post(client.url("admin/functions/unmonitored"), json={}, timeout=10)
    assert answer.status_code == 202
    assert [note["status"] for note in notes(client, "unmonitored")] == [{}]
    assert "RuntimeError: on purpose" in client.host.log()
    assert client.http.post(client.url("admin/functions/none"), timeout=10).status_code == 404


def test_a_missed_occurrence_fires_once(start_host: Callable[..., Client]) -> None:
    client = start_host("timers", YEARLY=YEARLY)
    until(lambda: notes(client, "on_startup"), "the start")
    client.host.kill()
    with sqlite3.connect(client.traces / "state" / "host.db") as db:
        # As if the host had been down since before three occurrences.
        changed = db.execute(
            "UPDATE schedules SET next_at = '2020-01-01T00:00:00.000000Z', last_at = '2019-01-01T00:00:00.000000Z'"
            " WHERE function IN ('yearly', 'unmonitored')"
        ).rowcount
    db.close()
    assert changed == 1
    client = start_host("timers", YEARLY=YEARLY)
    (missed,) = until(lambda: notes(client, "yearly"), "the missed occurrence")
    assert missed["past_due"] is True
    assert missed["status"]["Last"] == "2019-01-01T00:00:00.000000Z"
    assert missed["status"]["Next"] == "2020-01-01T00:00:00.000000Z"
    assert client.host.stop() == 0
    client = start_host("timers", YEARLY=YEARLY)
    until(lambda: len(notes(client, "on_startup")) == 3, "the next start")
    assert len(notes(client, "yearly")) == 1
    assert notes(client, "unmonitored") == []


def test_a_changed_schedule_has_missed_nothing(start_host: Callable[..., Client]) -> None:
    client = start_host("timers", YEARLY=YEARLY)
    until(lambda: notes(client, "on_startup"), "the start")
    client.host.kill()
    with sqlite3.connect(client.traces / "state" / "host.db") as db:
        db.execute("UPDATE schedules SET next_at = '2020-01-01T00:00:00.000000Z'")
    db.close()
    client = start_host("timers", YEARLY="0 0 0 2 1 *")
    until(lambda: len(notes(client, "on_startup")) == 2, "the next start")
    assert notes(client, "yearly") == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "'%YEARLY%' in the schedule of function 'yearly' does not resolve: set the app setting 'YEARLY'."),
        ("0 61 * * * *", "Function 'yearly' cannot be scheduled. The minute field '61'"),
    ],
)
def test_a_bad_schedule_stops_the_start(start_host: Callable[..., Client], value: str | None, words: str) -> None:
    with pytest.raises(HostFailed) as failure:
        start_host("timers", **({"YEARLY": value} if value else {}))
    assert failure.value.exit_code == 2
    assert words in failure.value.log
