"""Searches: trials, pruning, failures, resume, the best trial as a file, refusals."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dpd.cli import main, parse_train
from dpd.run.directory import locked
from dpd.tune import search as module
from dpd.tune.search import TrialJob
from tests.toy.html import Reader

pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'dpd[tune]'")

# Writes the evaluations of two seeds with two peers each, whose mean is a score, then does as told.
PRETENDS = """
import pathlib, sys, time
path, scores, end = pathlib.Path(sys.argv[1]), eval(sys.argv[2]), sys.argv[3]
with (path / "metrics.csv").open("w") as file:
    print("step,seed,peer,metric,value", file=file)
    for k, score in enumerate(scores, 1):
        for seed in (1000, 1001):
            for peer in (0, 1):
                print(f"{100 * k},{seed},{peer},eval/return,{score + peer - 0.5}", file=file)
(path / "checkpoints").mkdir(exist_ok=True)
(path / "touched").touch()
if end == "wait":
    time.sleep(60)
sys.exit(end if end != "done" else 0)
"""
SPACE = """
lr = { low = 1e-4, high = 1e-2, log = true }
hidden = [[8], [8, 8]]
"""
Script = Sequence[tuple[Sequence[float], str]]
"""Scores of every trial's evaluations, and its end."""


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets what trials do instead of training."""

    def set_script(script: Script) -> None:
        def command(job: TrialJob, slot: int, jobs: int) -> list[str]:
            scores, end = script[job.trial.number]
            return [sys.executable, "-c", PRETENDS, str(job.path), str(list(scores)), end]

        monkeypatch.setattr(TrialJob, "command", command)

    return set_script


def argv(folder: Path, *more: str, space: str = SPACE) -> list[str]:
    """Return the arguments of a search in a folder."""
    (folder / "space.toml").write_text(space)
    words = ["tune", "Hopper-v5", "--space", str(folder / "space.toml"), "--evals", "3"]
    return [*words, "--total-steps", "40960", "--out", str(folder / "tune"), *more]


def trials(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the trials of a finished search by number."""
    data = json.loads((folder / "tune" / "tune.json").read_text())
    return {trial["trial"]: trial for trial in data["trials"]}


def test_trials_that_fall_behind_are_stopped_and_failed_ones_named(
    tmp_path: Path, pretend: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    pretend(
        [
            ([5, 6, 7], "done"),
            ([1], "wait"),  # lower than trial 0 at evaluation 1, where one in three goes on
            ([8], "dpd: no such thing"),
            ([6, 7, 9], "done"),
        ]
    )
    assert main(argv(tmp_path, "--trials", "4")) == 0
    said = capfd.readouterr().out
    assert "tuning on seeds 1000 to 1001; report the result on others: dpd study's default" in said
    assert "trial 1: stopped after 1 of 3 evaluations, lr 0.0" in said
    assert "dpd: trial 2 ended with status 1" in said and "dpd: no such thing" in said
    found = trials(tmp_path)
    assert {k: t["state"] for k, t in found.items()} == {
        **{0: "complete", 1: "pruned", 2: "failed", 3: "complete"}
    }
    assert {k: t["evaluations"] for k, t in found.items()} == {
        **{0: [5, 6, 7], 1: [1], 3: [6, 7, 9], 2: found[2]["evaluations"]}
    }
    assert list(found)[:2] == [3, 0]  # by return
    assert found[2]["reason"] == "dpd: no such thing"
    # trials that ended keep no checkpoints; the failed one could be looked into
    kept = [(tmp_path / f"tune/trials/{k}/checkpoints").exists() for k in range(4)]
    assert kept == [False, False, True, False]
    best = parse_train(["--config", str(tmp_path / "tune" / "best.json")])
    assert best.run.env == "Hopper-v5" and best.run.seed == 0 and best.run.seeds == 1
    assert best.algos[0][1].lr == found[3]["values"]["lr"]
    assert list(best.algos[0][1].hidden) == found[3]["values"]["hidden"]
    lr = repr(found[3]["values"]["lr"])
    assert f"confirm dpd study Hopper-v5 -- --lr {lr} --hidden 8" in said
    assert_page_shows_all(tmp_path / "tune")


def assert_page_shows_all(out: Path) -> None:
    """Check the page of the search: it loads nothing, and has both figures and all trials."""
    seen = Reader()
    seen.feed((out / "tune.html").read_text())
    assert seen.tags.count("svg") == 2 and not {"script", "link", "img"} & set(seen.tags)
    assert "3: --lr 0.0" in seen.text and "best trial" in seen.text
    assert "trial 2 failed: dpd: no such thing" in seen.text
    assert "\n| 1 | 1 | pruned | 1/3 |" in (out / "tune.md").read_text()


def test_ctrl_c_ends_the_search_and_the_same_command_goes_on(
    tmp_path: Path, pretend: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    asked = ["--trials", "3", "--pruner", "none"]
    all_done: Script = [([k, k + 1, k + 2], "done") for k in range(3)]
    pretend(all_done)
    assert main(argv(whole, *asked)) == 0
    pretend([all_done[0], ([1], "wait")])

    def interrupt() -> None:
        touched = stopped / "tune/trials/1/touched"
        deadline = time.monotonic() + 60
        while not touched.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.5)  # the evaluation is reported
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert main(argv(stopped, *asked)) == 128 + signal.SIGINT
    said = capfd.readouterr().out
    assert "stopped after 1 of 3 trials; the same command goes on" in said
    assert not (stopped / "tune/tune.json").exists()
    pretend(all_done)
    assert main(argv(stopped, *asked)) == 0
    # the stopped trial keeps its number and values, and the next one is proposed as before
    assert trials(stopped) == trials(whole)
    before = (stopped / "tune/best.json").read_text()
    assert main(argv(stopped, *asked)) == 0  # nothing is left to do
    assert (stopped / "tune/best.json").read_text() == before
    assert "training" not in capfd.readouterr().out.partition("return 2")[2]


def test_a_search_without_a_complete_trial_has_no_result(
    tmp_path: Path, pretend: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend([([], "dpd: no"), ([], "dpd: no")])
    assert main(argv(tmp_path, "--trials", "2", "--jobs", "2")) == 2
    assert "was complete; see the ends of their logs" in capsys.readouterr().err
    assert not (tmp_path / "tune/best.json").exists()


def test_a_search_of_real_trainings_runs_on_ray(
    cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = ["--n-envs", "2", "--n-steps", "64", "--kernels", "torch"]
    small += ["--peers", "1", "--method", "none"]
    asked = ["--trials", "2", "--seeds", "1", "--total-steps", "384", "--eval-episodes", "1"]
    words = argv(tmp_path, *asked, "--pruner", "hyperband", "--engine", "ray")
    assert main([*words, "--", *small]) == 0
    found = trials(tmp_path)
    assert {t["state"] for t in found.values()} <= {"complete", "pruned"}
    assert all(len(t["evaluations"]) >= 1 for t in found.values())
    settings = [json.loads((tmp_path / f"tune/trials/{k}/config.json").read_text()) for k in (0, 1)]
    assert [s["lr"] for s in settings] == [found[k]["values"]["lr"] for k in (0, 1)]
    assert [s["seed"] for s in settings] == [1000, 1000]


@pytest.mark.parametrize(
    ("flags", "space", "message"),
    [
        (["--seed", "5", "--study-seeds", "0", "10"], SPACE, "give another --seed, such as 10"),
        (["--seed", "9", "--study-seeds", "10", "1"], SPACE, "seeds 9 to 10 are among those"),
        (["--reduction", "1"], SPACE, "--reduction must be at least 2"),
        (["--", "--seed", "1"], SPACE, "--seed after -- is set by the search"),
        (["--", "--lr", "1e-3"], SPACE, "--lr is fixed already; leave it out of one place"),
        ([], "evals = [1, 2]", "--evals is fixed already"),
        ([], "out = ['a', 'b']", "--out is fixed already"),
        (["--algo", "ppo"], "algo = ['ppo', 'sac']", "--algo is fixed already"),
        ([], "lrr = [1e-4, 1e-3]", "makes the trial --lrr 0.0001"),
        ([], "method = ['dpd', 'dp']", "makes the trial --method dp: "),
        ([], "distill.alpha = { low = 1, high = 5 }", "--distill.alpha takes fractions, but its"),
        (["--task-cpus", "2"], SPACE, "--task-cpus is for --engine ray"),
        (["--engine", "ray", "--", "--device", "cuda"], SPACE, "needs --task-gpus"),
    ],
)
def test_a_search_that_could_not_be_right_is_refused_in_a_line(
    flags: list[str],
    space: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(argv(tmp_path, *flags, space=space)) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "tune").exists()


def test_another_search_in_the_same_directory_is_refused(
    tmp_path: Path, pretend: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend([([1], "done")])
    assert main(argv(tmp_path, "--trials", "1")) == 0
    capsys.readouterr()
    assert main(argv(tmp_path, "--trials", "1", "--seeds", "3")) == 2
    assert "holds a search with other settings, such as seeds 2" in capsys.readouterr().err
    assert main(argv(tmp_path, "--trials", "1", space="lr = [1e-4, 1e-3]")) == 2
    assert "with other settings, such as space" in capsys.readouterr().err
    with locked(tmp_path / "tune"):
        assert main(argv(tmp_path, "--trials", "2")) == 2
    assert "is in use by another run" in capsys.readouterr().err


def test_a_missing_optuna_is_named_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert main(argv(tmp_path)) == 2
    said = capsys.readouterr().err
    assert said == "dpd: dpd tune needs Optuna; install it: pip install 'dpd[tune]'\n"
