"""Runs as tasks of a local Ray cluster of two CPUs: results, lost tasks, Ctrl-C, refusals."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest
import ray

from dpd.cli import main, parse_train
from dpd.study import cluster as module
from dpd.study.cluster import Mailbox, RayPool, on_this_node, places
from dpd.study.engine_config import EngineConfig
from dpd.study.jobs import Ended, Job, JobPool
from dpd.study.task import TaskReport

SMALL = ["--n-envs", "2", "--n-steps", "64", "--evals", "2", "--eval-episodes", "1"]
SMALL += ["--final-episodes", "1", "--hidden", "8", "--threads", "1", "--kernels", "torch"]
# Ends the Ray worker at its first import, its own process at the second, and fails at the third.
DIES = """
import os, pathlib
for name, pid in (("first", os.getppid()), ("second", os.getpid())):
    if not pathlib.Path(name).exists():
        pathlib.Path(name).touch()
        os.kill(pid, 9)
        os._exit(1)
print("third time")
raise SystemExit(2)
"""
# A run that begins again touches the same file, and counts once.
WAITS = """
import pathlib, sys, time
out = sys.argv[sys.argv.index("--out") + 1]
pathlib.Path(f"{out}.begun").touch()
time.sleep(600)
"""


def job(folder: Path, name: str) -> Job:
    """Return a job in a folder."""
    words = ["Hopper-v5", "--out", str(folder / name)]
    return Job(name, folder / name, words, parse_train(words))


def pretend(folder: Path, program: str, patch: pytest.MonkeyPatch) -> None:
    """Let children run a program: they begin in this directory, and its `dpd` hides the real one.

    A child that imports torch takes seconds.
    """
    (folder / "dpd").mkdir()
    (folder / "dpd/__init__.py").write_text(program)
    patch.chdir(folder)


def collect(pool: JobPool, enough: Callable[[list[Ended]], bool]) -> list[Ended]:
    """Follow a pool until enough has ended."""
    ended: list[Ended] = []
    deadline = time.monotonic() + 600
    while not enough(ended):
        assert time.monotonic() < deadline, (ended, list(pool.busy))
        pool.begun()
        ended += pool.ended()
        time.sleep(0.05)
    return ended


def test_a_study_on_ray_without_shared_storage_finds_what_one_here_finds(
    cluster: None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Apart(RayPool):
        """A pool whose tasks do not find the study's directory."""

        def __enter__(self) -> Self:
            super().__enter__()
            self._token.unlink()
            return self

    def argv(out: str, *more: str) -> list[str]:
        asked = ["study", "Hopper-v5", "--arms", "one", "--seeds", "1", "--total-steps", "512"]
        asked += ["--episodes", "1", "--threads", "1", "--out", str(tmp_path / out), *more]
        return [*asked, "--", *SMALL]

    monkeypatch.setattr(module, "RayPool", Apart)
    assert main(argv("here")) == 0 and main(argv("ray", "--engine", "ray")) == 0
    said = capfd.readouterr().out
    assert "Hopper-v5 one: training on " in said and "Hopper-v5 one: done in 0:0" in said
    run = tmp_path / "ray/Hopper-v5/one"
    assert "512/512 steps" in (run / "train.log").read_text()
    assert (run / "checkpoints").is_dir() and not list((tmp_path / "ray").glob(".shared*"))
    found = [json.loads((tmp_path / o / "study.json").read_text()) for o in ("here", "ray")]
    assert [data["engine"] for data in found] == ["local", "ray"]
    scores = [
        {a: [s["score"] for s in x["seeds"]] for a, x in data["tasks"][0]["arms"].items()}
        for data in found
    ]
    assert scores[0] == scores[1] and set(scores[0]) == {"dpd", "one"}
    # finished runs are not trained again
    assert main(argv("ray", "--engine", "ray")) == 0
    assert "its output is in" not in capfd.readouterr().out


def test_a_task_that_is_lost_begins_again_and_one_that_fails_does_not(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path, DIES, monkeypatch)
    with RayPool(EngineConfig(engine="ray", retries=5), None, tmp_path) as pool:
        pool.submit(job(tmp_path, "run"))
        ended = collect(pool, lambda ended: len(ended) == 3)
        assert not pool.busy
    assert ended[0].lost.startswith("was lost") and ended[1][1:3] == (-9, "")
    assert ended[2].status == 2  # `dpd train` refused its input: no attempt can help
    assert [each.is_again for each in ended] == [True, True, False]
    assert "third time" in ended[2].job.failure()


def test_no_attempts_are_left_after_the_last_retry(tmp_path: Path) -> None:
    pool = RayPool(EngineConfig(engine="ray", retries=1), None, tmp_path)
    lost = job(tmp_path, "run")
    started: list[Job] = []
    pool._start = lambda job, with_files=False: started.append(job)  # type: ignore[method-assign]
    pool.submit(lost)
    assert pool._ended(lost, 1, "was lost").is_again and not pool._ended(lost, 1, "").is_again
    assert started == [lost, lost]


def test_a_stop_ends_tasks_that_train_and_drops_those_that_wait(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path, WAITS, monkeypatch)
    jobs = [job(tmp_path, str(k)) for k in range(3)]
    with RayPool(EngineConfig(engine="ray"), None, tmp_path) as pool:
        for each in jobs:
            pool.submit(each)
        collect(pool, lambda _: len(list(tmp_path.glob("*.begun"))) == 2)
        pool.stop(signal.SIGINT)
        assert len(pool.busy) == 2
        ended = collect(pool, lambda ended: len(ended) == 2)
    assert [(each.status, each.is_again) for each in ended] == [(-signal.SIGINT, False)] * 2


def test_a_task_that_waits_for_the_mailbox_lends_its_cpu_to_no_other(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Mailbox):
        """A mailbox under load."""

        def send(self, report: TaskReport) -> int | None:
            time.sleep(0.5)
            return super().send(report)

    pretend(tmp_path, WAITS, monkeypatch)
    monkeypatch.setattr(module, "Mailbox", Slow)
    with RayPool(EngineConfig(engine="ray"), None, tmp_path) as pool:
        for k in range(3):
            pool.submit(job(tmp_path, str(k)))
        collect(pool, lambda _: len(list(tmp_path.glob("*.begun"))) >= 2)
        until = time.monotonic() + 3  # six reports, each a chance to begin
        collect(pool, lambda _: time.monotonic() > until)
        assert len(list(tmp_path.glob("*.begun"))) == 2
        pool.stop(signal.SIGINT)
        collect(pool, lambda ended: len(ended) == 2)


@pytest.mark.parametrize(
    ("flags", "train", "message"),
    [
        (["--task-cpus", "2"], [], "--task-cpus is for --engine ray; give that too, or leave"),
        (["--address", "auto"], [], "--address is for --engine ray"),
        (["--retries", "1"], [], "--retries is for --engine ray"),
        (["--engine", "ray", "--task-gpus", "1.5"], [], "above 1 must be a whole number"),
        (["--engine", "ray", "--task-gpus", "0"], [], "--task-gpus must be above 0"),
        (["--engine", "ray", "--task-gpus", "1"], [], "leave it out, or give --device cuda"),
        (["--engine", "ray"], ["--device", "cuda"], "--device cuda on --engine ray needs --task-g"),
        (["--engine", "ray"], ["--device", "cuda:1"], "Ray chooses the GPU of a task"),
    ],
)
def test_flags_that_would_do_nothing_are_refused_in_a_line(
    flags: list[str],
    train: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert main(["study", "Hopper-v5", *flags, "--out", str(tmp_path / "s"), "--", *train]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "s").exists()


def test_a_missing_ray_is_named_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    argv = ["study", "Hopper-v5", "--arms", "one", "--engine", "ray", "--out", str(tmp_path)]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said == "dpd: --engine ray needs Ray; install it: pip install 'dpd[cluster]'\n"


def test_a_search_proposes_no_more_trials_than_find_a_place(cluster: None, tmp_path: Path) -> None:
    for search, rooms in ((True, [True, True, False]), (False, [True, True, True])):
        pool = RayPool(EngineConfig(engine="ray"), None, tmp_path, is_search=search)
        found = []
        for k in range(3):  # of two CPUs
            found.append(pool.has_room)
            pool._tasks[k] = job(tmp_path, str(k))
        assert found == rooms


def test_reports_are_collected_on_the_callers_node_and_on_no_other(cluster: None) -> None:
    strategy = on_this_node()
    assert strategy.node_id == ray.get_runtime_context().get_node_id() and not strategy.soft


def test_a_node_holds_as_many_tasks_as_its_scarcest_resource(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 2.0}, {"CPU": 64.0}]
    monkeypatch.setattr(module, "resources_of_nodes", lambda: nodes)
    # 4 by the first node's CPUs, but 2 by its GPU; 1 by the second's CPUs; none on the third
    assert places(EngineConfig(engine="ray", task_cpus=2, task_gpus=0.5)) == 2 + 1
    assert places(EngineConfig(engine="ray", task_cpus=2)) == 4 + 1 + 32


def test_a_task_larger_than_every_node_is_refused(cluster: None, tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="has 64 CPUs and 0 GPUs for a task; the largest has 2"),
        RayPool(EngineConfig(engine="ray", task_cpus=64), None, tmp_path),
    ):
        pass
