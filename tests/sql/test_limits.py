"""Caps that hold for all of a process: connections of a setting, and rows a second."""

import threading

import pytest

from shared.clients.sql.limits import ConnectionQuota, RowPace, pace_of, quota_of
from shared.errors import Throttled


def test_connections_are_taken_all_or_none() -> None:
    quota = ConnectionQuota("DB")
    with quota.taken(2, 3):
        with pytest.raises(Throttled) as raised, quota.taken(2, 3, wait_s=0):
            pass
        assert raised.value.code == "connections_in_use"
        assert "source.max_connections" in raised.value.detail
        with quota.taken(1, 3, wait_s=0):
            pass
    with quota.taken(3, 3, wait_s=0):
        pass


def test_who_waits_gets_what_another_gives_back() -> None:
    quota, begun, order = ConnectionQuota("DB"), threading.Event(), list[str]()

    def wait() -> None:
        begun.set()
        with quota.taken(1, 1):
            order.append("second")

    waiting = threading.Thread(target=wait)
    with quota.taken(1, 1):
        waiting.start()
        begun.wait()
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_connections_are_given_back_after_a_failure() -> None:
    quota = ConnectionQuota("DB")
    with pytest.raises(ZeroDivisionError), quota.taken(1, 1):
        _ = 1 / 0
    with quota.taken(1, 1, wait_s=0):
        pass


def test_rows_of_all_sessions_together_keep_to_the_pace() -> None:
    pace = RowPace()
    assert 990 < pace.delay_s(1_000, 1) <= 1_000
    assert 1_990 < pace.delay_s(1_000, 1) <= 2_000


def test_a_setting_has_one_quota_and_one_pace() -> None:
    assert quota_of("ONE") is quota_of("ONE") is not quota_of("OTHER")
    assert pace_of("ONE") is pace_of("ONE") is not pace_of("OTHER")
