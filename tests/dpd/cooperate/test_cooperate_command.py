"""`dpd cooperate` from end to end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dpd.cli import main
from dpd.cooperate import cooperation
from dpd.cooperate.rounds import Round
from dpd.policies import policyfile
from dpd.policies.policyfile import Policy, load
from dpd.run.sources import one_policy
from tests.toy import policies as made
from tests.toy import zips as foreign

TASK = "Swimmer-v5"
SMALL = ["--probes", "24", "--probe-envs", "4", "--probe-steps", "20", "--horizon", "5"]
SMALL += ["--steps", "20", "--proxy-steps", "20", "--episodes", "2", "--trial-episodes", "0"]
KEPT = ("obs_mean", "obs_scale", "obs_count", "act_low", "act_high")


def write(path: Path, policy: Policy, **changes: Any) -> Path:
    policyfile.save(path, policy.tensors, replace(policy.meta, **changes))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A PPO and a SAC of random weights."""
    folder = tmp_path_factory.mktemp("policies")
    return [
        write(folder / f"{algo}.safetensors", made.saved(folder / algo, algo, TASK))
        for algo in ("ppo", "sac")
    ]


def cooperate(*argv: str | Path) -> int:
    return main(["cooperate", *SMALL, "--threads", "1", *map(str, argv)])


def test_policies_of_two_algorithms_improve_each_other(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cooperate(*files, "--out", out, "--json") == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found == json.loads((out / "cooperative.json").read_text())
    assert said.err.count("round 1/2") == 1 and said.err.count("round 2/2") == 1
    check_figures(found)
    for k, file in enumerate(files):
        check_policy(out / f"policies/peer{k}.safetensors", file, found, k)
    check_events(out / "tb", found)
    best = max((0, 1), key=lambda k: found["policies"][k]["return_after"])
    assert one_policy(out).name == f"peer{best}.safetensors"


def check_figures(found: dict[str, Any]) -> None:
    steps = found["steps"]
    assert steps["total"] == sum(v for k, v in steps.items() if k != "total") < 500_000
    assert steps["evaluation"] == 2 * 2 * 2 * 1000  # twice two episodes of two policies
    # twice 48 states, both policies from each; students again from some that are held out
    assert 2 * 48 * 2 * 5 <= steps["competence"] <= 2 * (48 * 2 + 2 * 10) * 5
    assert steps["probe"] <= 2 * 2 * 4 * 20 and steps["counterfactual"] > 0
    assert found["ended_early"] is None and found["env"] == TASK
    for policy in found["policies"]:
        low, high = policy["interval_after"]
        assert low <= policy["return_after"] == np.mean(policy["returns_after"]) <= high
        assert policy["gain"] == pytest.approx(policy["return_after"] - policy["return_before"])
        # two episodes: all signs alike come up in 2 of 4 draws; Holm doubles the smaller p
        assert policy["p"] in (0.5, 1) and policy["p_adjusted"] == 1
        assert policy["verdict"] == "too few episodes"
    assert [r["round"] for r in found["rounds"]] == [1, 2]
    assert [(p["teacher"], p["student"]) for p in found["rounds"][0]["pairs"]] == [(0, 1), (1, 0)]
    assert sum(p["n_deficient"] for p in found["rounds"][0]["pairs"]) > 10


def check_policy(path: Path, source: Path, found: dict[str, Any], k: int) -> None:
    new, old = load(path), load(source)
    assert (new.meta.algo, new.meta.squashed) == (old.meta.algo, old.meta.squashed)
    assert all(torch.equal(new.tensors[name], old.tensors[name]) for name in KEPT)
    assert not torch.equal(new.tensors["actor.0.weight"], old.tensors["actor.0.weight"])
    origin = new.meta.provenance
    assert origin["source"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (origin["rounds"], origin["source"]["steps"]) == (2, 1000)
    assert [peer["algo"] for peer in origin["peers"]] == [["sac"], ["ppo"]][k]
    assert origin["eval_return"] == found["policies"][k]["return_after"]


def check_events(folder: Path, found: dict[str, Any]) -> None:
    runs = {run.name: EventAccumulator(str(run)).Reload() for run in folder.iterdir()}
    assert sorted(runs) == ["peer0", "peer0-to-peer1", "peer1", "peer1-to-peer0"]
    rounds = found["rounds"]
    written = [(e.step, e.value) for e in runs["peer0-to-peer1"].Scalars("coop/n_deficient")]
    assert written == [(r["steps"], r["pairs"][0]["n_deficient"]) for r in rounds]
    (event,) = runs["peer1"].Scalars("coop/return_after")
    assert event.value == pytest.approx(found["policies"][1]["return_after"])


def test_the_tables_fit_80_columns(
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    assert cooperate(*files, "--control", "unfocused", "--rounds", "1") == 0
    said = capsys.readouterr().out.splitlines()
    assert max(map(len, said[:-4])) <= 80
    assert said[-4].startswith("simulator steps  ") and "counterfactual 0" in said[-4]
    assert said[-3] == "note: fewer than 7 episodes cannot decide the gains of 2 policies"
    assert said[-2].split() == ["policies", "cooperative/policies"]
    assert said[-1].split() == ["report", "cooperative/cooperative.html"]
    row = next(line.split() for line in said if line.split()[:2] == ["1", "0→1"])
    assert len(row) == 10 and row[4] == row[5] == row[8] == "-"  # no counterfactuals, no proxy


def test_a_budget_that_ends_early_is_said_in_one_line(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cooperate(*files, "--total-steps", "8500", "--out", tmp_path / "none") == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("the budget ended")]
    assert "in round 1: competence needs up to" in line
    assert line.endswith("; no round was completed, and nothing was written")
    assert not (tmp_path / "none/policies").exists()
    assert cooperate(*files, "--total-steps", "9000", "--out", tmp_path / "one") == 0
    said = capsys.readouterr().out
    assert "the budget ended in round 2:" in said and "; the policies are those of round 1" in said
    assert len(list((tmp_path / "one/policies").iterdir())) == 2


def test_an_interrupt_leaves_the_policies_of_the_last_round(
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    goes_on = cooperation.cooperate

    def interrupted(*args: Any) -> Iterator[Round]:
        yield next(goes_on(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(cooperation, "cooperate", interrupted)
    assert cooperate(*files, "--out", tmp_path / "out") == 130
    resume = f"; resume with: dpd cooperate --resume {tmp_path / 'out'}"
    assert f"stopped; the policies are those of round 1{resume}" in capsys.readouterr().out
    for k in (0, 1):
        kept = load(tmp_path / f"out/policies/peer{k}.safetensors").meta.provenance
        assert kept["rounds"] == 1 and kept["eval_return"] is None
    found = json.loads((tmp_path / "out/cooperative.json").read_text())
    assert len(found["rounds"]) == 1 and "return_after" not in found["policies"][0]
    monkeypatch.undo()
    check_resumed(files, tmp_path, capsys)


def check_resumed(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that a resumed cooperation ends bit for bit as an uninterrupted one does."""
    assert cooperate(*files, "--out", tmp_path / "whole") == 0
    assert main(["cooperate", "--resume", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert said.err.count("round 2/2") == 2 and said.err.count("round 1/2") == 1
    whole, resumed = (
        json.loads((tmp_path / name / "cooperative.json").read_text()) for name in ("whole", "out")
    )
    assert resumed.pop("settings") | {"out": ""} == whole.pop("settings") | {"out": ""}
    assert resumed == whole
    for k in (0, 1):
        a, b = (load(tmp_path / f"{x}/policies/peer{k}.safetensors") for x in ("whole", "out"))
        assert all(torch.equal(x, b.tensors[name]) for name, x in a.tensors.items())
        assert a.meta == b.meta
    assert main(["cooperate", "--resume", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "dpd: all 2 rounds are done; raise --rounds\n"
    assert main(["cooperate", "--resume", str(tmp_path / "out"), "--rounds", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rounds"]) == 3


def test_a_run_that_cannot_go_on_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("torn", '{"settings": {'), ("other", "[1]"), ("old", '{"settings": {}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cooperative.json").write_text(text)
    cases = [
        (["--resume", str(tmp_path / "none")], "is no run of dpd cooperate"),
        (["--resume", str(tmp_path / "torn")], "was not written by dpd cooperate"),
        (["--resume", str(tmp_path / "other")], "was not written by dpd cooperate"),
        (["--resume", str(tmp_path / "old")], "was not written by dpd cooperate"),
        (["--resume", str(tmp_path / "old"), "--lr", "1"], "saved settings; leave --lr out"),
        (["--resume", str(tmp_path / "old"), "--env", "Ant-v5"], "saved settings; leave --env out"),
        (["--resume", str(tmp_path / "old"), "--out", "x"], "saved settings; leave --out out"),
        (["--resume", str(tmp_path / "old"), "x"], "policies of the saved run; leave POLICY out"),
    ]
    for argv, says in cases:
        assert main(["cooperate", *argv]) == 2, says
        said = capsys.readouterr()
        assert says in said.err and said.err.count("\n") == 1 and not said.out, said.err


def test_flags_equal_to_their_defaults_count_on_resume(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cooperate(*files, "--rounds", "1", "--total-steps", "9000", "--out", out) == 0
    # the defaults: 2 rounds, 500,000 steps, as many threads as there are cores
    flags = ["--rounds", "2", "--total-steps", "500000", "--threads", "None"]
    capsys.readouterr()
    assert main(["cooperate", "--resume", str(out), *flags]) == 0
    assert capsys.readouterr().err.count("round 2/2") == 1
    settings = json.loads((out / "cooperative.json").read_text())["settings"]
    assert (settings["rounds"], settings["total_steps"]) == (2, 500_000)
    assert settings["threads"] is None and settings["probes"] == 24  # saved, and not its default


def test_the_page_shows_everybody_and_nothing_that_a_name_smuggles_in(
    files: list[Path], tmp_path: Path
) -> None:
    evil = write(tmp_path / "<script>$x$.safetensors", load(files[0]))
    flags = ["--trial-episodes", "1", "--rounds", "1", "--out", str(tmp_path / "out")]
    assert cooperate(evil, files[1], *flags) == 0
    page = (tmp_path / "out/cooperative.html").read_text()
    assert "<script" not in page and "&lt;script&gt;$x$" in page
    text = (tmp_path / "out/cooperative.md").read_text()
    assert "<script" not in text and "| 0 &lt;script>$x$ |" in text
    assert page.count("<svg") == 2 and page.count("<table>") == 5
    assert "Trial in 1 other episodes" in page and "http" not in page.split("<body>")[1].replace(
        "http://www.w3.org", ""
    )
    found = json.loads((tmp_path / "out/cooperative.json").read_text())
    assert found["steps"]["trial"] == 2 * 2 * 1000
    for k, trial in enumerate(found["rounds"][0]["trials"]):
        assert trial["passed"] == (trial["after"] >= trial["before"])
        new, old = load(tmp_path / f"out/policies/peer{k}.safetensors"), load((evil, files[1])[k])
        same = torch.equal(new.tensors["actor.0.weight"], old.tensors["actor.0.weight"])
        assert same != trial["passed"]


def test_a_zip_of_stable_baselines3_cooperates(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _, _ = foreign.trained(tmp_path, env_id=TASK, steps=128)
    assert cooperate(files[1], source, "--rounds", "1", "--out", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["policies"][1]["algo"] == "ppo"
    assert load(tmp_path / "out/policies/peer1.safetensors").meta.env_id == TASK


def test_bad_input_is_refused_in_one_line(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ppo, sac = files
    hopper = write(tmp_path / "hopper.safetensors", made.saved(tmp_path / "h", "ppo", "Hopper-v5"))
    pendulums: list[str | Path] = [
        write(tmp_path / f"p{k}.safetensors", made.saved(tmp_path / f"{k}", "ppo", "Pendulum-v1"))
        for k in (0, 1)
    ]
    heavy: list[str | Path] = [
        write(tmp_path / f"heavy{k}.safetensors", load(ppo), env_kwargs={"frame_skip": 2 + k})
        for k in (0, 1)
    ]
    wide = load(ppo)
    wide.tensors["act_high"] = wide.tensors["act_high"] * 2
    bounds = write(tmp_path / "bounds.safetensors", wide)
    (tmp_path / "full/policies").mkdir(parents=True)
    cases: list[tuple[list[str | Path], str]] = [
        ([ppo], "needs at least two POLICYs"),
        ([], "needs at least two POLICYs"),
        ([ppo, ppo], "is given twice"),
        ([ppo, tmp_path / "none"], "does not exist"),
        ([ppo, tmp_path / "none.safetensors"], "does not exist"),
        ([ppo, hopper], "hopper reads 11 observations and gives 3 actions; Swimmer-v5 has 8 and 2"),
        ([ppo, bounds], "bounds acts within other bounds than Swimmer-v5"),
        (pendulums, "restorable states of the task: no native simulation of Pendulum-v1"),
        (heavy, 'heavy0 in Swimmer-v5 {"frame_skip": 2}; choose the arguments with --env-kwargs'),
        ([ppo, sac, "--env", "Pendulum-v1"], "no native simulation of Pendulum-v1"),
        ([ppo, sac, "--activation", "tanh"], "--activation is for Stable-Baselines3 zips"),
        ([ppo, sac, "--total-steps", "8000"], "only covers the evaluations"),
        ([ppo, sac, "--rounds", "0"], "--rounds must be at least 1, not 0"),
        ([ppo, sac, "--lr", "0"], "--lr must be positive"),
        ([ppo, sac, "--margin", "-1"], "--margin must not be negative"),
        ([ppo, sac, "--gamma", "1.5"], "--gamma must lie in (0, 1]"),
        ([ppo, sac, "--probes", "81"], "--probes 81 is more than the states that"),
        ([ppo, sac, "--control", "none", "--out", tmp_path / "full"], "already holds policies"),
        ([ppo, sac, "--out", hopper], "cannot write"),
        ([ppo, sac, "--control", "other"], "other"),
    ]
    for argv, says in cases:
        given = [str(x) for x in argv]
        out = [] if "--out" in given else ["--out", str(tmp_path / "out")]
        assert main(["cooperate", *SMALL, *given, *out]) == 2, says
        said = capsys.readouterr()
        assert says in said.err and said.err.count("\n") == 1 and not said.out, said.err
    assert not (tmp_path / "out").exists()
