"""Comparisons from end to end, on two similar small runs and a third one that differs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from matplotlib.image import imread

from dpd.cli import main
from dpd.policies import policyfile
from dpd.policies.policyfile import Policy, load
from dpd.report.panels import RANGE
from dpd.report.stats import NARROW
from dpd.run.episodes import episode_seeds
from dpd.run.sources import ReturnsByStep, Run, SavedLearner
from dpd.study.compare import (
    EvaluatedPolicy,
    RunResult,
    best_peer,
    curve_line,
    episodes_seed,
)

SMALL = ["--n-envs", "2", "--n-steps", "64", "--evals", "2", "--eval-episodes", "1"]
SMALL += ["--final-episodes", "1", "--hidden", "8"]
PAPER = ["--preset", "paper", "--distill.steps", "4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two methods on seeds 3 and 4, and one on seed 9 with half the steps."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in {
        "taught": ["--seeds", "2", "--seed", "3", "--total-steps", "1024", *PAPER],
        "alone": ["--seeds", "2", "--seed", "3", "--total-steps", "1024", "--method", "none"],
        "other": ["--seeds", "1", "--seed", "9", "--total-steps", "512", "--method", "none"],
    }.items():
        assert main(["train", "Hopper-v5", *SMALL, *more, "--out", str(folder / name)]) == 0
    return folder


def compare(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> dict:
    """Run the command; return its JSON."""
    capsys.readouterr()
    assert main(["compare", *map(str, argv), "--episodes", "2", "--threads", "1", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_figures_follow_from_the_returns(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.png"
    found = compare(capsys, runs / "taught", runs / "alone", "--out", out)
    assert [r["run"] for r in found["runs"]] == ["taught", "alone"]
    scores = []
    for run in found["runs"]:
        assert (run["steps"], run["budget"]) == ([1024], 1024)
        assert [s["seed"] for s in run["seeds"]] == [3, 4]
        for seed in run["seeds"]:
            means = [np.mean(p["returns"]) for p in seed["peers"]]
            assert len(means) == 2 and all(len(p["returns"]) == 2 for p in seed["peers"])
            assert seed["score"] == pytest.approx(np.mean(means))
            evaluations = [p["last_evaluation"] for p in seed["peers"]]
            assert seed["best_peer"] == int(np.argmax(evaluations))
        scores.append([s["score"] for s in run["seeds"]])
        assert run["mean"] == run["iqm"] == pytest.approx(np.mean(scores[-1]))  # 2 < 4 seeds
        # of two seeds, the interval is the two themselves
        assert run["iqm_interval"] == pytest.approx([run["worst"], run["best"]])
        assert (run["worst"], run["best"]) == (min(scores[-1]), max(scores[-1]))
    (gap,) = found["differences"]
    gaps = np.subtract(scores[1], scores[0])
    assert (gap["run"], gap["minus"], gap["paired"]) == ("alone", "taught", True)
    assert gap["mean"] == pytest.approx(gaps.mean())
    # of two seeds: half of their distance is the standard error, and t(1, 97.5 %) = 12.706
    half = 12.7062 * abs(gaps[0] - gaps[1]) / 2
    assert gap["interval"] == pytest.approx([gaps.mean() - half, gaps.mean() + half])
    # two signs: 2 / 4 where both gaps have one sign, otherwise all draws are as far from 0
    assert gap["p"] == gap["p_adjusted"] == (0.5 if gaps[0] * gaps[1] > 0 else 1.0)
    assert (gap["seeds"], gap["verdict"]) == (2, "too few seeds")
    assert imread(out).shape == (900, 1480, 4)
    assert [f.name for f in tmp_path.iterdir()] == ["c.png"]


def test_a_comparison_is_repeatable_and_depends_on_the_seed(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = (runs / "taught", runs / "other", "--out", tmp_path / "c.png")
    first = compare(capsys, *argv)
    assert first == compare(capsys, *argv)
    assert first["runs"][0]["mean"] != compare(capsys, *argv, "--seed", "1")["runs"][0]["mean"]


def test_notes_warn_about_a_weak_or_unfair_comparison(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = (runs / "taught", runs / "other", runs / "alone")
    found = compare(capsys, *paths, "--out", tmp_path / "c.png")
    assert found["notes"] == [
        "fewer than 7 seeds cannot decide 2 differences: taught has 2, other has 1, alone has 2",
        NARROW,
        "unfair: the runs differ in environment steps per seed: taught 1,024, other 512, "
        "alone 1,024",
        "p adj. is adjusted by Holm's method for 2 differences and decides the verdicts; the "
        "intervals are not adjusted",
    ]
    unpaired = found["differences"][0]
    assert not unpaired["paired"] and unpaired["interval"] is unpaired["p"] is None
    assert unpaired["verdict"] == "too few seeds"


def test_a_run_that_was_stopped_is_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    for name in ("policies", "metrics.csv"):
        (stopped / name).symlink_to(runs / "other" / name)
    config = json.loads((runs / "other" / "config.json").read_text())
    (stopped / "config.json").write_text(json.dumps(config | {"total_steps": 4096}))
    found = compare(capsys, stopped, runs / "other", "--out", tmp_path / "c.png")
    assert "stopped is not finished: 512 of 4,096 steps" in found["notes"]


def test_policy_files_are_compared_like_runs(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.png"
    files = [runs / "taught" / "policies" / f"seed3-peer{p}.safetensors" for p in (0, 1)]
    found = compare(capsys, *files, "--out", out)
    assert [r["run"] for r in found["runs"]] == ["seed3-peer0", "seed3-peer1"]
    assert found["notes"][-1] == f"{out} was not drawn: no PATH has learning curves"
    assert not out.exists()
    compare(capsys, files[0], runs / "alone", "--out", out)
    assert out.exists()


def test_the_table_keeps_its_figures_whole_on_80_columns(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    argv = ["compare", runs / "taught", runs / "alone", "--episodes", "1"]
    assert main([*map(str, argv), "--out", str(tmp_path / "c.png")]) == 0
    said = capsys.readouterr().out
    assert "Hopper-v5, 1,024 steps per seed" in said and "2 pairs" in said
    lines = said.splitlines()[:-1]  # the last is the picture's path
    assert max(len(line) for line in lines if not line.startswith("note: ")) <= 80
    of_alone = [line.split() for line in said.splitlines() if line.strip().startswith("alone ")]
    # run, seeds, mean, IQM, interval, worst, best, best peer
    assert [len(row) for row in of_alone][:1] == [8]
    # run, seeds, difference, interval, p, p adj., verdict
    assert of_alone[1][1:3] == ["2", "pairs"] and of_alone[1][7:] == ["too", "few", "seeds"]
    assert all(0 < float(p) <= 1 for p in of_alone[1][5:7])
    figures = of_alone[0][1:4] + of_alone[0][5:]
    assert all(float(figure.replace(",", "")) > 0 for figure in figures)


def made(*evaluations: float | None, seed: int = 0) -> list[EvaluatedPolicy]:
    """Make peers of a seed that had these evaluations in training, and 10, 20, ... in the test."""
    none = cast(Policy, None)
    returns = np.array([5.0, 15.0])
    return [
        EvaluatedPolicy(SavedLearner(seed, k, Path(), none, value), returns + 10 * k)
        for k, value in enumerate(evaluations)
    ]


def test_the_score_of_a_seed_is_the_mean_over_its_peers() -> None:
    scores = RunResult(cast(Run, None), {4: made(1.0, 2.0, 3.0, seed=4)}).scores
    assert scores == {4: 20}  # 10, 20, 30


@pytest.mark.parametrize(
    ("evaluations", "best"),
    [((9.0, 1.0), 0), ((1.0, 9.0), 1), ((4.0, 4.0), 0), ((None,), 0), ((1.0, None), None)],
)
def test_the_best_peer_is_chosen_by_training_and_not_by_the_test(
    evaluations: tuple[float | None, ...], best: int | None
) -> None:
    chosen = best_peer(made(*evaluations))
    assert (None if chosen is None else chosen.member.peer) == best


def result(curve: ReturnsByStep, n_seeds: int) -> RunResult:
    """Make a run with a curve; each seed scores 15."""
    seeds = {s: made(1.0, 2.0, seed=s) for s in range(n_seeds)}
    members = tuple(peer.member for peers in seeds.values() for peer in peers)
    run = Run(path=Path(), name="run", members=members, budget=None, records=None)
    run.__dict__["curve"] = curve
    return RunResult(run, seeds)


def test_a_band_is_an_interval_over_many_seeds_and_the_range_over_few() -> None:
    few = curve_line(result({10: [1.0, 2.0, 6.0]}, 3), 0)
    assert few == ("run (3 seeds)", [10], [3.0], [(1.0, 6.0)], RANGE)
    many = curve_line(result({10: [2.0] * 6}, 6), 0)
    assert many == ("run (6 seeds)", [10], [2.0], [(2.0, 2.0)], "95 % bootstrap interval")
    assert curve_line(result({10: [7.0]}, 1), 0) == ("run (1 seed)", [10], [7.0], [], "")
    assert curve_line(result({}, 1), 0) == ("run (1 seed)", [], [15.0], [], "")


def test_the_episodes_are_new_and_the_same_for_all_policies_of_a_seed() -> None:
    tests = {episodes_seed(0, k) for k in range(20)} | {episodes_seed(1, k) for k in range(20)}
    assert len(tests) == 40
    used = {e for k in range(20) for purpose in range(50) for e in episode_seeds(k, 2, purpose)}
    used |= {e for k in range(20) for e in episode_seeds(k + 1_000_000, 2)}
    assert not used & {e for seed in tests for e in episode_seeds(seed, 2)}


def test_runs_of_different_environments_are_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = load(runs / "other" / "policies" / "seed9-peer0.safetensors")
    unlike: dict[str, dict[str, Any]] = {
        "id": {"env_id": "Walker2d-v5"},
        "kwargs": {"env_kwargs": {"frame_skip": 2}},
    }
    for name, changes in unlike.items():
        file = tmp_path / f"{name}.safetensors"
        policyfile.save(file, source.tensors, replace(source.meta, **changes))
        argv = ["compare", str(runs / "other"), str(file), "--out", str(tmp_path / "c.png")]
        capsys.readouterr()
        assert main(argv) == 2
        said = capsys.readouterr().err
        assert "other was trained in Hopper-v5 {}" in said and said.count("\n") == 1
        assert ("in Walker2d-v5 {}" if name == "id" else 'Hopper-v5 {"frame_skip": 2}') in said


def test_bad_input_is_refused_before_anything_is_played(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taught, out = str(runs / "taught"), str(tmp_path / "c.png")
    for argv, says in [
        ([taught, taught], "given twice"),
        ([taught, str(runs)], "is not a run directory: it contains no policies"),
        ([taught, str(tmp_path / "none")], "does not exist"),
        (
            [taught, str(runs / "alone"), "--out", str(tmp_path / "no" / "c.png")],
            "no such directory",
        ),
    ]:
        assert main(["compare", "--out", out, *argv]) == 2
        assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
