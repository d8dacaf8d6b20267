"""`dpd watch`: frames of runs made of a settings file, a table of metrics and a lock."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import dpd.watch.watch as module
from dpd.cli import main, parse_train, saved_run
from dpd.errors import BadInput
from dpd.files import read_lock
from dpd.log.csv import CSV_FIELDS
from dpd.run.directory import locked
from dpd.watch.picture import frame, sparkline
from dpd.watch.records import WatchedRun
from dpd.watch.watch import Watched, watch_paths

# 2 peers x 2 environments x 50 steps: 200 steps per iteration, 5 iterations.
SETTINGS = ["--n-envs", "2", "--n-steps", "50", "--minibatch-size", "50", "--total-steps", "1000"]
Row = tuple[int, int | str, int | str, str, float]


def add_rows(run_dir: Path, rows: Sequence[Row], name: str = "metrics.csv") -> None:
    with (run_dir / name).open("a") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)


def make_run(run_dir: Path, *flags: str, steps: Sequence[int] = (200, 400, 600)) -> Path:
    """Write a run of two peers: evaluations 1, 2, 3 times 10 and -10, at 100 steps per second."""
    run_dir.mkdir(parents=True)
    config = parse_train(["Swimmer-v5", *SETTINGS, *flags])
    (run_dir / "config.json").write_text(json.dumps(config.as_json()))
    (run_dir / "metrics.csv").write_text(",".join(CSV_FIELDS) + "\n")
    for k, step in enumerate(steps, 1):
        add_rows(
            run_dir,
            [
                (step, 0, 0, "eval/return", 10.0 * k),
                (step, 0, 1, "eval/return", -10.0 * k),
                (step, 0, 0, "distill/peer_ahead", 0.25),
                (step, 0, 1, "distill/ess", 0.4),
                (step, "", "", "time/steps_per_s", 100.0),
            ],
        )
    return run_dir


def lines(*runs: WatchedRun, unicode: bool = True, width: int = 200) -> list[str]:
    screen = StringIO()
    for run in runs:
        run.read_new()
    Console(file=screen, width=width).print(frame(runs, width, unicode))
    return screen.getvalue().splitlines()


def cells(shown: list[str], start: str) -> list[str]:
    return next(line for line in shown if line.startswith(start)).removeprefix(start).split()


def test_a_frame_of_a_running_run_has_progress_returns_and_the_exchange(tmp_path: Path) -> None:
    run = WatchedRun(make_run(tmp_path / "run"), saved_run)
    with locked(tmp_path / "run"):
        shown = lines(run)
    assert "dpd train Swimmer-v5: dpd, ppo" in shown[0]
    # 600 of 1,000 steps; the other 400 take 4 s at 100 steps per second.
    assert "60.0 %  600/1,000 steps  100 steps/s  0:00:04 left  running" in shown[1]
    # From -30 to 30 in eight levels: 10 is 2/3 of the way, level 5 of 0 to 7; 20 is 5/6, level 6.
    assert cells(shown, "peer 0") == ["30.0", "30.0", "-", "▆▇█"]
    assert cells(shown, "peer 1") == ["-30.0", "-10.0", "-", "▃▂▁"]
    heading = next(k for k, line in enumerate(shown) if "peer ahead" in line)
    assert shown[heading].split() == ["peer", "ahead", "states", "that", "count"]
    assert shown[heading + 1].split() == ["peer", "0", "25", "%", "-"]
    assert shown[heading + 2].split() == ["peer", "1", "-", "40", "%"]
    assert not any("resume" in line for line in shown)


def test_new_rows_are_read_and_rows_that_a_resume_dropped_are_forgotten(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    run = WatchedRun(run_dir, saved_run)
    run.read_new()
    add_rows(run_dir, [(800, 0, 0, "eval/return", 99.0)])
    with (run_dir / "metrics.csv").open("a") as file:
        file.write("1000,0,0,eval/ret")  # a row that is being written
    run.read_new()
    assert run.step == 800 and run.curve((0, 0), "eval/return")[800] == 99.0
    text = (run_dir / "metrics.csv").read_text().splitlines()
    (run_dir / "new").write_text("\n".join(text[:6]) + "\n")  # the heading and the first record
    os.replace(run_dir / "new", run_dir / "metrics.csv")
    run.read_new()
    assert run.step == 200 and run.curve((0, 0), "eval/return") == {200: 10.0}


def test_a_killed_run_is_said_to_be_killed_and_a_stopped_one_stopped(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        with locked(run_dir):
            os.write(writing, b".")
            time.sleep(600)
    os.read(reading, 1)
    run = WatchedRun(run_dir, saved_run)
    run.read_new()
    assert run.state == "running" and read_lock(run_dir).process == str(child)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    shown = lines(run)
    assert shown[1].endswith(f"killed (process {child})") and "left" not in shown[1]
    assert shown[-1] == f"resume with: dpd train --resume {run_dir}"
    with locked(run_dir):  # the resumed run, which ends by itself
        pass
    assert lines(run)[1].endswith("stopped")


def test_a_look_at_the_lock_does_not_stop_a_run_from_starting(tmp_path: Path) -> None:
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            read_lock(tmp_path)

    watchers = [threading.Thread(target=look) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(20):
            with locked(tmp_path):
                pass
    finally:
        stop.set()
        for watcher in watchers:
            watcher.join()


def test_a_finished_run_is_over_and_evaluates_while_it_holds_the_lock(tmp_path: Path) -> None:
    run = WatchedRun(make_run(tmp_path / "run", steps=(500, 1000)), saved_run)
    with locked(tmp_path / "run"):
        assert lines(run)[1].endswith("evaluating")
    assert lines(run)[1].split("  ")[-1] == "finished"


def test_workers_add_their_speeds_and_the_slowest_sets_the_time(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "--seeds", "3", "--workers", "2", steps=())
    add_rows(run_dir, [(400, 0, 0, "eval/return", 1.0), (400, "", "", "time/steps_per_s", 80.0)])
    more: list[Row] = [(600, 2, 1, "eval/return", 2.0), (600, "", "", "time/steps_per_s", 50.0)]
    add_rows(run_dir, more, "metrics-1.csv")
    run = WatchedRun(run_dir, saved_run)
    with locked(run_dir):
        run.read_new()
    # Two seeds at 80 together are 40 for each, and one at 50: (1000 - 400) / 40 = 15 s.
    assert run.speed == (130.0, 40.0)
    assert run.step == 400 and run.seconds_left == 15.0
    assert run.latest((2, 1), "eval/return") == 2.0


def test_many_learners_are_medians_by_peer(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "--seeds", "5", steps=())
    rows: list[Row] = [(200, seed, 0, "eval/return", float(seed)) for seed in range(5)]
    add_rows(run_dir, rows)
    shown = lines(WatchedRun(run_dir, saved_run))
    assert cells(shown, "peer 0")[:2] == ["2.0", "2.0"]  # the median of 0 to 4
    assert any(line.startswith("median of 5 seeds") for line in shown)


def test_a_curve_is_a_line_of_signs() -> None:
    # Four shares with means 1, 5, 9 and 13 of 0 to 14: 0.6, 2.9, 5.1 and 7.4 eighths.
    curve = dict(enumerate([0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpd.watch.picture.CURVE_WIDTH", 4)
        assert sparkline(curve, list(curve.values())) == "▁▃▆█"
        assert sparkline(curve, list(curve.values()), "0123") == "0123"
    assert sparkline({1: 5.0, 2: float("nan")}, [5.0]) == "▅"  # a flat one is in the middle
    assert sparkline({}, []) == ""


def test_the_exchange_has_as_many_columns_as_the_terminal_has_room_for(tmp_path: Path) -> None:
    run = WatchedRun(make_run(tmp_path / "run"), saved_run)
    assert any("peer ahead" in line for line in lines(run, width=24))
    assert not any("states" in line for line in lines(run, width=24))


def test_progress_stays_on_one_line_of_a_terminal_of_80_columns(tmp_path: Path) -> None:
    run = WatchedRun(make_run(tmp_path / "run"), saved_run)
    with locked(tmp_path / "run"):
        (line,) = [line for line in lines(run, width=80) if "steps" in line and "%" in line]
    assert line.endswith("60.0 %  600/1,000 steps  100 steps/s  0:00:04 left  running")
    assert len(line) <= 80


def test_a_directory_of_runs_is_a_table_and_once_ends_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # short paths fit a table of 80 columns
    make_run(tmp_path / "study" / "Swimmer-v5" / "dpd", steps=(500, 1000))
    make_run(tmp_path / "study" / "Swimmer-v5" / "one")
    (tmp_path / "study" / "old").mkdir()
    (tmp_path / "study" / "old" / "config.json").write_text('{"hidden_size": 3}')
    assert main(["watch", "study", "--once"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "1 of 2 runs finished, 0 running"
    # the mean of 20 and -20, and of 30 and -30, is 0
    done = cells(shown, "study/Swimmer-v5/dpd")
    assert done == ["100.0", "%", "finished", "100", "-", "0.0", "▅▅"]
    assert cells(shown, "study/Swimmer-v5/one")[2] == "stopped"
    assert shown[-1].startswith("note: study/old: ")


def test_a_live_view_ends_with_the_run_and_sees_one_that_begins_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, screen = make_run(tmp_path / "runs" / "a"), StringIO()
    monkeypatch.setattr(
        module,
        "make_console",
        lambda **given: Console(file=screen, width=120, force_terminal=True, color_system=None),
    )
    naps = 0

    def nap(seconds: float) -> None:
        nonlocal naps
        naps += 1
        if naps == 2:
            add_rows(run_dir, [(1000, 0, 0, "eval/return", 7.0)])
            lock.__exit__(None, None, None)

    monkeypatch.setattr(module.time, "sleep", nap)
    (lock := locked(run_dir)).__enter__()
    config = module.WatchConfig(paths=(run_dir,))
    assert [run.state for run in watch_paths(config, saved_run).runs] == ["finished"]
    assert naps == 2 and "running" in screen.getvalue() and "finished" in screen.getvalue()
    watched = Watched([tmp_path / "runs"], saved_run)
    watched.read_new()
    make_run(tmp_path / "runs" / "b")
    watched.read_new()
    assert [path.name for path in watched.runs] == ["a", "b"] and watched.goes_on


def test_signs_are_ascii_where_the_terminal_has_no_others(tmp_path: Path) -> None:
    run = WatchedRun(make_run(tmp_path / "run"), saved_run)
    assert cells(lines(run, unicode=False), "peer 0")[-1] == "*#@"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["watch"], "needs a PATH"),
        (["watch", "nowhere"], "does not exist"),
        (["watch", "."], "contains no run"),
        (["watch", ".", "--every", "0"], "--every must be positive"),
    ],
)
def test_what_cannot_be_watched_is_refused_in_one_line(
    argv: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_run_that_cannot_be_read_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BadInput, match="JSON object"):
        Watched([tmp_path], saved_run).read_new()
