"""Progress as text: what a person reads while a run goes on."""

from typing import Any

import pytest

from shared.policy.progress_line import LiveLine, progress_line, settled_items


def document(**changes: Any) -> dict[str, Any]:
    progress = {
        "planned": 2000, "planning_done": True, "uploaded": 900, "skipped": 100, "failed": 0, "deleted": 0,
        "bytes_planned": 400 * 1024**2, "bytes_done": 200 * 1024**2, "items_per_s": 410.4,
        "bytes_per_s": 76.5 * 1024**2, "eta_s": 83, "success_rate": 1.0,
    }  # fmt: skip
    status = changes.pop("status", "transferring")
    ended_at = changes.pop("ended_at", None)
    load = changes.pop("source_load", None)
    return {"id": "files-a-1", "status": status, "ended_at": ended_at, "source_load": load,
            "progress": {**progress, **changes}}  # fmt: skip


def test_a_run_under_way() -> None:
    assert progress_line(document()) == (
        "transferring ████████████░░░░░░░░░░░░  50 %  1,000 of 2,000 items  200.0 MiB of 400.0 MiB  "
        "410/s  76.5 MiB/s  1 min 23 s left"
    )


def test_ascii_for_terminals_that_have_nothing_else() -> None:
    assert progress_line(document(), is_unicode=False).isascii()
    assert "############............" in progress_line(document(), is_unicode=False)


def test_no_share_while_the_plan_grows() -> None:
    line = progress_line(document(planning_done=False, eta_s=None))
    assert "%" not in line
    assert "left" not in line
    assert "1,000 items of 2,000 found so far" in line


def test_failures_are_named_and_count_as_settled() -> None:
    shown = document(failed=3, deleted=1)
    assert progress_line(shown).endswith("3 failed")
    assert settled_items(shown) == 1004


def test_renames_are_told_and_count_as_settled() -> None:
    shown = document(renamed=60, uploaded=2, skipped=0, planned=62)
    assert "100 %" in progress_line(shown)
    assert progress_line(shown).endswith("60 renamed")
    assert settled_items(shown) == 62


def test_a_status_of_before_there_were_renames() -> None:
    shown = document()
    assert "renamed" not in shown["progress"]
    assert settled_items(shown) == 1000


def test_a_source_that_is_read_before_it_is_planned() -> None:
    shown = document(status="planning", planned=0, planning_done=False, uploaded=0, skipped=0, listed=12_345)
    assert progress_line(shown).endswith("░  12,345 items listed so far")
    assert "12,345" not in progress_line(document(listed=12_345)), "the plan has more to say once it has begun"


LOAD = {"units": 2375, "ceiling": 2500, "share": 0.95}


def test_what_the_source_allows() -> None:
    assert progress_line(document(source_load=LOAD)).endswith("95 % of 2,500 units/min")
    reading = document(status="planning", planned=0, planning_done=False, listed=5, source_load=LOAD)
    assert progress_line(reading).endswith("5 items listed so far  95 % of 2,500 units/min")


@pytest.mark.parametrize(
    "changes",
    [{"source_load": None}, {"source_load": {"units": 9, "ceiling": None, "share": None}},
     {"source_load": LOAD, "status": "completed", "ended_at": "2026-11-21T02:00:00Z"}],
)  # fmt: skip
def test_no_share_of_a_limit_that_nobody_told_or_that_is_over(changes: dict[str, Any]) -> None:
    assert "units" not in progress_line(document(**changes))


def test_an_ended_run_has_no_rate() -> None:
    assert "/s" not in progress_line(document(status="completed", ended_at="2026-11-21T02:00:00Z"))


@pytest.mark.parametrize(("planned", "uploaded", "share"), [(0, 0, "100 %"), (1000, 999, " 99 %"), (3, 0, "  0 %")])
def test_shares_are_never_rounded_up(planned: int, uploaded: int, share: str) -> None:
    assert share in progress_line(document(planned=planned, uploaded=uploaded, skipped=0))


class Screen:
    def __init__(self, columns: int | None) -> None:
        self.written: list[str] = []
        self.line = LiveLine(self.written.append, columns)


def test_a_terminal_shows_one_line_cut_to_its_width() -> None:
    screen = Screen(10)
    screen.line.show("0123456789abc", 0.0)
    screen.line.show("second", 0.1)
    screen.line.say("stays")
    screen.line.say("stays too")
    assert screen.written == ["\r\x1b[K012345678", "\r\x1b[Ksecond", "\r\x1b[Kstays\n", "stays too\n"]


def test_a_terminal_line_is_ended_once() -> None:
    screen = Screen(80)
    screen.line.show("first", 0.0)
    screen.line.close()
    screen.line.close()
    assert screen.written == ["\r\x1b[Kfirst", "\n"]


def test_a_file_gets_a_line_every_few_seconds_and_no_control_characters() -> None:
    screen = Screen(None)
    for tenth in range(101):
        screen.line.show(f"at {tenth / 10:g} s", tenth / 10)
    screen.line.close()
    assert screen.written == ["at 0 s\n", "at 5 s\n", "at 10 s\n"]
