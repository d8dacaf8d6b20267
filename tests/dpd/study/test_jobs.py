"""Arms in processes of their own: slots, failures, Ctrl-C, and the display."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from dpd.cli import main, parse_train
from dpd.envs.physics import n_cores
from dpd.run.directory import locked
from dpd.study import engines
from dpd.study import jobs as module
from dpd.study import study as command
from dpd.study.display import JOBS_LINE_S, JobsDisplay
from dpd.study.jobs import Ended, Job, ProcessPool, child_command, start_child

WAITS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""
SMALL = ["--n-envs", "2", "--n-steps", "64", "--evals", "2", "--eval-episodes", "1"]
SMALL += ["--final-episodes", "1", "--hidden", "8", "--threads", "1", "--kernels", "torch"]


class Scripted(Job):
    """A job that runs a program of its own instead of `dpd train`."""

    def __init__(self, folder: Path, name: str, program: str) -> None:
        words = ["Hopper-v5", "--out", str(folder / name)]
        super().__init__(name, folder / name, words, parse_train(words))
        self.program = program

    def command(self, slot: int, jobs: int) -> list[str]:
        """Return the program with the path of a file that it may touch."""
        return [sys.executable, "-c", self.program, str(self.path / "touched")]


def run_jobs(jobs: Sequence[Job], slots: int) -> int:
    """Run jobs in processes of this machine."""
    return engines.run_jobs(jobs, lambda: ProcessPool(slots))


def wait_for(*conditions: Callable[[], bool]) -> None:
    """Wait until all conditions hold."""
    deadline = time.monotonic() + 60
    while not all(condition() for condition in conditions):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_job_that_fails_is_named_with_the_end_of_its_log_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = "import sys\nfor k in range(7): print('line', k)\nprint()\nsys.exit('dpd: no')"
    jobs = [
        Scripted(tmp_path, "first", "pass"),
        Scripted(tmp_path, "second", fails),
        Scripted(tmp_path, "third", "pass"),
    ]
    assert run_jobs(jobs, 2) == 1  # the status of sys.exit with a text
    said = capsys.readouterr().out
    assert (
        f"dpd: second ended with status 1; {tmp_path / 'second' / 'train.log'} ends with:" in said
    )
    # the last five lines that are not empty, the error's among them
    assert "line 2" not in said and "line 3\nline 4\nline 5\nline 6\ndpd: no\n" in said
    assert "first: done in 0:00:0" in said and "third: done in 0:00:0" in said
    assert "dpd: 1 of 3 runs failed; rerun the study to resume" in said


def test_a_job_that_is_killed_has_the_status_of_a_shell(tmp_path: Path) -> None:
    dies = "import os; os.kill(os.getpid(), 9)"
    assert run_jobs([Scripted(tmp_path, "first", dies)], 1) == 128 + 9


def test_no_more_jobs_run_at_once_than_there_are_slots(tmp_path: Path) -> None:
    waits = "import sys; sys.stdin.read()"  # until the pool closes its end
    jobs = [Scripted(tmp_path, str(k), waits) for k in range(3)]
    with ProcessPool(2) as pool:
        for job in jobs[:2]:
            assert pool.has_room
            pool.submit(job)
        assert not pool.has_room and pool.begun() == jobs[:2] and pool.begun() == []
        first, second = children = [child_of(pool, job) for job in jobs[:2]]
        end(second)
        wait_for(lambda: pool.ended() == [Ended(jobs[1], 0)])
        assert pool.has_room and pool.busy == jobs[:1]
        pool.submit(jobs[2])
        children.append(child_of(pool, jobs[2]))
        assert pool.begun() == jobs[2:] and pool.busy == [jobs[0], jobs[2]]
    assert [child.poll() for child in (first, second, children[2])] == [-9, 0, -9]


def child_of(pool: ProcessPool, job: Job) -> subprocess.Popen[bytes]:
    """Return the process of a job."""
    return pool._children[job]


def end(child: subprocess.Popen[bytes]) -> None:
    """Let a process that waits for the end of its input finish."""
    assert child.stdin is not None
    child.stdin.close()


def test_ctrl_c_stops_all_jobs_and_starts_no_further_ones(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [Scripted(tmp_path, str(k), WAITS) for k in range(3)]
    statuses: list[tuple[Job, int]] = []
    real = engines.Queue.take

    def take(queue: engines.Queue, ended: Ended, *rest: Any, **named: Any) -> None:
        statuses.append(ended[:2])
        real(queue, ended, *rest, **named)

    monkeypatch.setattr(engines.Queue, "take", take)

    def interrupt() -> None:
        wait_for(*((job.path / "touched").exists for job in jobs[:2]))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert run_jobs(jobs, 2) == 128 + signal.SIGINT
    assert sorted((job.name, status) for job, status in statuses) == [("0", 130), ("1", 130)]
    said = capfd.readouterr().out
    assert "0: stopped" in said and "failed" not in said and "ends with" not in said
    assert "stopped; rerun the study to resume its runs" in said


def test_jobs_share_the_cores_unless_a_flag_says_otherwise(tmp_path: Path) -> None:
    def given(*flags: str) -> list[str]:
        words = ["Hopper-v5", *flags, "--out", str(tmp_path / "run")]
        job = Job("run", tmp_path / "run", words, parse_train(words))
        assert job.command(1, 2)[:3] == [sys.executable, "-c", module.CHILD]
        return job.command(1, 2)[3:]

    cores = n_cores()
    run = ["train", "Hopper-v5", "--out", str(tmp_path / "run")]
    assert given() == [*run, "--threads", str(max(1, cores // 2))]
    assert given("--threads", "3") == [*run[:2], "--threads", "3", *run[2:]]
    # two workers of each of two jobs share them
    workers = ["--seeds", "2", "--workers", "2"]
    share = str(max(1, cores // 4))
    assert given(*workers) == [*run[:2], *workers, *run[2:], "--threads", share]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    resumed = ["train", "--resume", str(tmp_path / "run"), "--threads", str(max(1, cores // 2))]
    assert given() == resumed


def test_a_child_saves_its_run_and_ends_when_the_study_is_killed(tmp_path: Path) -> None:
    words = ["Hopper-v5", "--total-steps", "100000000", *SMALL, "--out", str(tmp_path / "run")]
    job = Job("run", tmp_path / "run", words, parse_train(words))
    with ProcessPool(1) as pool:
        pool.submit(job)
        child = child_of(pool, job)
        wait_for(lambda: job.steps() > 0)
        end(child)  # the system closes this end of a pipe when a process is killed
        assert child.wait(timeout=60) == 128 + signal.SIGTERM
    assert "resume with: dpd train --resume" in job.log.read_text()
    steps = [int(file.stem.removeprefix("step-")) for file in job.path.rglob("step-*")]
    assert max(steps) > 0


def test_a_child_obeys_ctrl_c_where_its_parent_does_not(tmp_path: Path) -> None:
    (tmp_path / "dpd").mkdir()  # hides the real one, whose import takes seconds
    (tmp_path / "dpd/__init__.py").write_text(
        "import pathlib, time; pathlib.Path('touched').touch(); time.sleep(60)"
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        child = start_child(child_command([]), tmp_path / "train.log", str(tmp_path))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        signal.signal(signal.SIGINT, before)
    wait_for((tmp_path / "touched").exists)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=30) == -signal.SIGINT


def test_jobs_on_gpus_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "nth_device", lambda name, n: f"cuda:{n % 2}")
    words = ["Hopper-v5", "--device", "cuda", "--threads", "1"]
    job = Job("run", tmp_path, words, parse_train(words))
    assert [job.command(slot, 3)[-2:] for slot in range(3)] == [
        ["--device", "cuda:0"],
        ["--device", "cuda:1"],
        ["--device", "cuda:0"],
    ]


class Counted:
    """A job for the display, whose steps a test sets."""

    log, total, done, place = Path("some.log"), 1000, 0, ""

    def __init__(self, name: str) -> None:
        self.name = name

    def steps(self) -> int:
        """Return the steps that the test set."""
        return self.done

    def failure(self) -> str:
        """Return the end of a log."""
        return "dpd: no"


def test_the_display_has_a_line_per_minute_with_speed_and_time_left() -> None:
    clock, out = [0.0], io.StringIO()
    jobs = [Counted("one"), Counted("two")]
    jobs[0].done = 200  # a resumed run
    console = Console(file=out, width=200)
    display = JobsDisplay(cast(Any, jobs), console, lambda: clock[0])
    with display:
        for job in jobs:
            display.begin(cast(Job, job))
        # a rate is of two readings
        for seconds, one in ((20, 300), (JOBS_LINE_S, 500), (JOBS_LINE_S + 1, 500)):
            clock[0], jobs[0].done = seconds, one
            display.update()
        clock[0] = 3601
        display.end(Ended(cast(Job, jobs[0]), 0))
        display.end(Ended(cast(Job, jobs[1]), 3))
    lines = out.getvalue().splitlines()
    # one: 200 steps in 40 s are 5 a second, and 500 are left; 500 of all 2,000 steps are done
    assert lines[2] == (
        "0 of 2 runs done  500/2,000 steps  5 steps/s  0:05:00 left; "
        "one  500/1,000 steps  5 steps/s  0:01:40 left; two  0/1,000 steps"
    )
    assert lines[3:] == [
        "one: done in 1:00:01",
        "dpd: two ended with status 3; some.log ends with:",
        "dpd: no",
    ]


def test_a_terminal_shows_a_bar_for_every_job_that_runs() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, force_interactive=True)
    jobs = [Counted("one"), Counted("two")]
    jobs[0].done = 300
    with JobsDisplay(cast(Any, jobs), console) as display:
        display.begin(cast(Job, jobs[0]))
        display.update()
    assert "300/1,000 steps" in out.getvalue() and "0 of 2 runs done" in out.getvalue()
    assert "two" not in out.getvalue()


def test_a_study_in_parallel_finds_what_one_in_turn_finds_and_goes_on_after_a_failure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def argv(out: str, *more: str) -> list[str]:
        asked = ["study", "Hopper-v5", "--arms", "one", "--seeds", "2", "--total-steps", "512"]
        asked += ["--episodes", "1", "--threads", "1", "--out", str(tmp_path / out), *more]
        return [*asked, "--", *SMALL]

    assert main(argv("turn")) == 0
    with locked(tmp_path / "parallel" / "Hopper-v5" / "one"):
        assert main(argv("parallel", "--jobs", "2")) == 2
    said = capfd.readouterr().out
    assert "dpd: Hopper-v5 one ended with status 2" in said and "is in use by another run" in said
    assert "Hopper-v5 dpd: done in" in said
    assert not (tmp_path / "parallel" / "study.json").exists()
    trained: list[str] = []
    real = command.run_jobs

    def note(jobs: Sequence[Job], open_engine: Any) -> int:
        trained.extend(job.name for job in jobs)
        return real(jobs, open_engine)

    monkeypatch.setattr(command, "run_jobs", note)
    assert main(argv("parallel", "--jobs", "2")) == 0 and trained == ["Hopper-v5 one"]
    assert "512/512 steps" in (tmp_path / "parallel/Hopper-v5/dpd/train.log").read_text()
    found = [json.loads((tmp_path / o / "study.json").read_text()) for o in ("turn", "parallel")]
    assert [data["jobs"] for data in found] == [1, 2] and found[0]["cores"] == n_cores()
    scores = [
        {a: [s["score"] for s in x["seeds"]] for a, x in data["tasks"][0]["arms"].items()}
        for data in found
    ]
    assert scores[0] == scores[1] and set(scores[0]) == {"dpd", "one"}
