"""What a worker moves, told now and then."""

import json
import logging

import pytest

from shared.engine.meter import Meter
from shared.model.steps import Counts, no_counts


def test_batches_are_added_up_and_told_every_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now_s = 100.0
    meter = Meter(lambda: now_s)
    batch: Counts = {**no_counts(), "uploaded": 3, "failed": 1, "bytes_done": 10}
    for level in (64, 128, 96, 80):
        now_s += 4.0
        meter.add(batch, level)
    assert len(caplog.records) == 1
    told = json.loads(caplog.messages[0].removeprefix("metrics "))
    assert told == caplog.records[0].__dict__["custom_dimensions"]
    assert (told["uploaded"], told["failed"], told["bytes_done"], told["concurrency"]) == (9, 3, 30, 96)
    assert told["seconds"] == 12.0
    now_s += 10.0
    meter.add(batch, 64)
    assert json.loads(caplog.messages[1].removeprefix("metrics "))["uploaded"] == 6, "what was told is not told again"
