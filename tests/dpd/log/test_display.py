import math
from collections.abc import Sequence
from io import StringIO

import pytest
from rich.console import Console

from dpd.log.terminal import RATE_WINDOW_S, Board, Display, MetricValue

TOTAL = 1000


class Clock:
    """Stand still until told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(
    seeds: Sequence[int] = (0,), peers: int = 2, start_step: int = 0
) -> tuple[Display, Clock, StringIO]:
    """Make a display on a file, its clock and the file."""
    clock, screen = Clock(), StringIO()
    console = Console(file=screen, width=40)
    board = Board(seeds, peers)
    return Display(board, TOTAL, "run", console, start_step, clock), clock, screen


def live(seeds: Sequence[int] = (0,), peers: int = 2) -> tuple[Display, Clock, StringIO]:
    """Make a display on a terminal, its clock and what the terminal got."""
    clock, screen = Clock(), StringIO()
    console = Console(
        file=screen, width=100, force_terminal=True, force_interactive=True, color_system=None
    )
    return Display(Board(seeds, peers), TOTAL, "run", console, clock=clock), clock, screen


def test_a_plain_line_says_everything_and_never_wraps() -> None:
    display, clock, screen = plain(seeds=(0, 1, 2))
    values: dict[str, MetricValue] = {
        "train/return": [1234.5, 2.0, 1234.5, 2.0, 9999.0, 3.0],
        "eval/return": [1500.0, 7.0, 1500.0, 7.0, -5.0, 7.0],
        "distill/action_distance": [0.43] * 6,
        "distill/peer_ahead": [0.51] * 6,
        "distill/agree_0.1": [0.9, 0.8] * 3,
    }
    with display:
        for step in (100, 200, 300):  # 100 steps in 2 s: 50 per second, 700 left take 14 s
            display.update(step, values)
            clock.now += 2
    assert screen.getvalue().splitlines()[-1] == (
        " 30.0 %  300/1,000 steps  50 steps/s x 3 seeds  0:00:14 left  train 1234.5/2.0"
        "  eval 1500.0/7.0  disagreement 0.43  peer ahead 51 %  agreement 85 %"
    )


def test_plain_lines_come_every_five_per_cent() -> None:
    display, clock, screen = plain()
    with display:
        for step in range(1, TOTAL + 1):
            clock.now += 0.01
            display.update(step, {"eval/return": [1.0, 2.0]})
    per_cent = [float(line.split("%")[0]) for line in screen.getvalue().splitlines()]
    assert per_cent == [0.1, *range(5, 101, 5)]


def test_a_slow_run_is_heard_of_every_fifteen_seconds() -> None:
    display, clock, screen = plain()
    with display:
        for step in range(1, 9):  # at 0 and 16 s, and at the end; between them 4 s apart
            display.update(step, {})
            clock.now += 4
    assert [line.split("/")[0] for line in screen.getvalue().splitlines()] == [
        "  0.1 %  1",
        "  0.5 %  5",
        "  0.8 %  8",
    ]


def test_the_last_record_is_shown_even_if_it_came_early() -> None:
    display, _, screen = plain()
    with display:
        display.update(TOTAL, {})
        display.update(TOTAL, {"eval/return": [1.0, 2.0]})
    assert screen.getvalue().splitlines()[-1].endswith("eval 1.0/2.0")


def test_the_last_known_return_stays_where_no_episode_ended() -> None:
    board = Board((0,), 2)
    board.update({"train/return": [5.0, math.nan]})
    board.update({"train/return": [math.nan, math.nan]})
    assert board.cell("train/return", 0, 0) == "5.0"
    assert board.cell("train/return", 1, 1) == "-"


def test_a_diverged_loss_is_shown() -> None:
    board = Board((0,), 2)
    board.update({"loss/policy": [0.5, 0.5]})
    board.update({"loss/policy": [math.nan, 0.5]})
    assert board.cell("loss/policy", 0, 0) == "nan"


def test_the_first_interval_does_not_count_for_the_rate() -> None:
    display, clock, screen = plain()
    with display:
        display.update(0, {})
        clock.now = 60.0  # compilation
        display.update(100, {})
        assert "steps/s" not in screen.getvalue()
        clock.now = 61.0
        display.update(200, {})
    # 100 steps in the second interval of 1 s; 800 steps are left
    assert "100 steps/s  0:00:08 left" in screen.getvalue().splitlines()[-1]


def test_the_rate_follows_a_lasting_change() -> None:
    display, clock, screen = plain()
    with display:
        for step in (100, 200):
            clock.now += 10
            display.update(step, {})
        clock.now += RATE_WINDOW_S + 1  # the samples before are too old to count
        for step in (300, 320):
            clock.now += 10
            display.update(step, {})
    assert "  2 steps/s  0:05:40 left" in screen.getvalue().splitlines()[-1]


def test_a_resumed_run_does_not_take_old_steps_for_speed() -> None:
    display, clock, screen = plain(start_step=500)
    with display:
        for step in (600, 700):
            clock.now += 10
            display.update(step, {})
    assert "10 steps/s" in screen.getvalue().splitlines()[-1]


def test_the_live_table_has_a_row_per_learner_when_they_are_few() -> None:
    display, _, screen = live(seeds=(4, 7))
    with display:
        display.update(500, {"train/return": [1.0, 2.0, 3.0, 4.0], "loss/policy": [0.125] * 4})
    last = screen.getvalue().rsplit("\x1b[2K", 1)[1]
    assert "50.0 %  500/1,000 steps" in last
    cells = [line.split() for line in last.splitlines()]
    assert ["train", "policy", "loss"] in cells
    for seed, peer, value in (("4", "0", "1.0"), ("4", "1", "2.0"), ("7", "1", "4.0")):
        assert ["seed", seed, "peer", peer, value, "0.125"] in cells


def test_the_live_table_has_medians_by_peer_when_learners_are_many() -> None:
    display, _, screen = live(seeds=range(5))
    with display:
        display.update(500, {"eval/return": [0.0, 9.0, 1.0, 9.0, 2.0, 9.0, 3.0, 9.0, 99.0, 9.0]})
    cells = [line.split() for line in screen.getvalue().rsplit("\x1b[2K", 1)[1].splitlines()]
    assert ["median", "of", "5", "eval"] in cells
    assert ["peer", "0", "2.0"] in cells and ["peer", "1", "9.0"] in cells
    assert not any(cell[:1] == ["seed"] for cell in cells)


def test_the_live_display_is_drawn_at_most_four_times_a_second() -> None:
    display, clock, screen = live()
    with display:
        for step in range(1, 101):  # 100 records in one second
            clock.now += 0.01
            display.update(step, {})
    drawn = screen.getvalue().count("% ")
    assert 4 <= drawn <= 8  # the first, four within the second, and Live's own on closing


def test_a_notice_stands_above_the_live_table_and_is_no_markup() -> None:
    display, _, screen = live()
    with display:
        display.update(500, {"eval/return": [1.0, 2.0]})
        display.notice("kept [bold] as it is")
    text = screen.getvalue()
    assert 0 < text.index("kept [bold] as it is") < text.rindex("peer 0")


def test_the_cursor_comes_back_when_drawing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    display, _, screen = live()

    def fail(self: Board, width: int) -> None:
        raise ValueError("broken board")

    with pytest.raises(ValueError, match="broken board"), display:
        monkeypatch.setattr(Board, "table", fail)
        display.update(500, {"eval/return": [1.0, 2.0]})
    assert "\x1b[?25h" in screen.getvalue().split("\x1b[?25l")[-1]
