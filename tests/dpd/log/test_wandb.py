"""Weights & Biases in offline mode, read back from the files that it writes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dpd.cli import main, parse_run, parse_train
from dpd.errors import BadInput
from dpd.log.config import WandbConfig, require_wandb
from dpd.log.csv import last_step, read_rows
from dpd.log.log import RunLog
from dpd.log.terminal import make_console
from dpd.run.processes import share
from dpd.study.config import StudyConfig
from tests.dpd.log.test_log import scalars
from tests.toy.wandb_files import history, wandb_runs

OFFLINE = WandbConfig(wandb=True, wandb_mode="offline")
HPARAMS = {"algo": "ppo", "distill": {"alpha": 1.0, "hidden": [8, 8]}}
# Rows are group * peers + peer: seed 3 has 10 and 11, seed 8 has 20 and 21, so the mean is 15.5.
RETURNS = torch.tensor([10.0, 11.0, 20.0, 21.0])
SMALL = ["--n-envs", "2", "--n-steps", "32", "--minibatch-size", "32", "--hidden", "4"]
SMALL += ["--kernels", "torch", "--threads", "1", "--evals", "1", "--eval-episodes", "1"]


@pytest.fixture(autouse=True)
def without_an_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("API_KEY", "PROJECT", "ENTITY", "RUN_GROUP", "MODE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)


def open_log(run_dir: Path, wandb: WandbConfig = OFFLINE, **changes: Any) -> RunLog:
    settings: dict[str, Any] = dict(seeds=(3, 8), peers=("peer0", "peer1"), total_steps=1000)
    settings |= dict(hparams=HPARAMS, title="a run", console=make_console(quiet=True))
    return RunLog(run_dir, wandb=wandb, **(settings | changes))


def test_wandb_gets_each_learner_and_their_mean_and_a_resume_continues_the_run(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "runs" / "first"
    with open_log(run_dir) as log:
        for step in (100, 200, 300):
            log.record(step, {"eval/return": RETURNS + step, "time/eval": 2.0})
        log.record(350, {"eval/return": RETURNS}, keep=False)
    # Stopped after 300, with a checkpoint at 200: 300 is recorded twice.
    with open_log(run_dir, start_step=200) as log:
        log.record(300, {"eval/return": RETURNS + 300})
        log.record(400, {"eval/return": RETURNS + 400})
    logged = history(run_dir)
    assert [row["_step"] for row in logged] == [100, 200, 300, 400]
    assert [row["eval/return"] for row in logged] == [115.5, 215.5, 315.5, 415.5]
    assert [row["eval/return/seed8-peer1"] for row in logged] == [121.0, 221.0, 321.0, 421.0]
    assert logged[0]["time/eval"] == 2.0 and "time/eval/seed3-peer0" not in logged[0]
    first, second = wandb_runs(run_dir)
    assert first.run_id == second.run_id == json.loads((run_dir / "wandb.json").read_text())["id"]
    assert first.project == "dpd" and first.display_name.endswith("runs/first")
    config = {item.key: json.loads(item.value_json) for item in first.config.update}
    assert config["algo"] == "ppo" and config["distill"] == {"alpha": 1.0, "hidden": [8, 8]}


def test_one_learner_is_logged_once_and_the_environment_names_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "swimmers")
    monkeypatch.setenv("WANDB_RUN_GROUP", "alone")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = WandbConfig(wandb=True, wandb_entity="team")
    with open_log(tmp_path, config, seeds=(0,), peers=("peer0",)) as log:
        log.record(100, {"eval/return": torch.tensor([7.0])})
    (row,) = history(tmp_path)
    assert {k: v for k, v in row.items() if k[0] != "_"} == {"eval/return": 7.0}
    (run,) = wandb_runs(tmp_path)
    assert (run.project, run.entity, run.run_group) == ("swimmers", "team", "alone")
    with pytest.raises(BadInput, match="project swimmers, not other; leave --wandb-project out"):
        open_log(tmp_path, WandbConfig(wandb=True, wandb_project="other"), start_step=100)


def test_a_resumed_run_appends_to_the_same_curves_everywhere(
    tmp_path: Path, no_report: None
) -> None:
    out = tmp_path / "run"
    argv = ["train", "Swimmer-v5", *SMALL, "--lr-schedule", "constant", "--total-steps", "256"]
    assert main([*argv, "--wandb", "--wandb-mode", "offline", "--out", str(out)]) == 0
    assert main(["train", "--resume", str(out), "--total-steps", "512"]) == 0
    rows = [r for r in read_rows(out / "metrics.csv") if r["metric"] == "loss/policy"]
    curve = {int(row["step"]): float(row["value"]) for row in rows if row["peer"] == "1"}
    assert list(curve) == [128, 256, 384, 512]  # 2 peers x 2 envs x 32 steps
    board = dict(scalars(out, "seed0-peer1", "loss/policy"))
    wandb = {row["_step"]: row["loss/policy/seed0-peer1"] for row in history(out)}
    assert len(history(out)) == 4
    assert board == pytest.approx(curve) and wandb == pytest.approx(curve)
    assert len({run.run_id for run in wandb_runs(out)}) == 1


def test_settings_of_wandb_are_a_runs_only_if_it_uses_wandb() -> None:
    assert "wandb" not in parse_train([]).as_json()
    config = parse_train(["--wandb", "--wandb-group", "ants"])
    assert config.as_json()["wandb_group"] == "ants"
    distill = parse_run(["--teacher", "t", "--wandb"], "distill")
    assert distill.wandb == WandbConfig(wandb=True)


def test_a_study_passes_wandb_on_to_every_run() -> None:
    study = StudyConfig(seeds=2).with_flags(["--wandb", "--wandb-group", "peers"])
    for arm in study.chosen:
        config = parse_train(study.words("HalfCheetah-v5", arm))
        assert config.wandb == WandbConfig(wandb=True, wandb_group="peers"), arm


def test_workers_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    config = share(parse_train(["--seeds", "2", "--workers", "2", "--wandb"]), 1)
    assert config.wandb.grouped("first").wandb_group == "first"
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    assert config.wandb.grouped("first").wandb_group == "mine"


def test_what_wandb_cannot_do_is_refused_before_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "Swimmer-v5", "--out", str(tmp_path / "run")]
    assert main([*argv, "--wandb-project", "p"]) == 2
    assert "--wandb-project does nothing without --wandb" in capsys.readouterr().err
    assert main([*argv, "--wandb"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "not logged in" in said and "--wandb-mode offline" in said
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert main([*argv, "--wandb"]) == 2
        assert "pip install 'dpd[wandb]'" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_MODE", "disabled")
    require_wandb(WandbConfig(wandb=True))  # switched off by the environment
    assert not (tmp_path / "run").exists()


def test_the_last_step_of_a_log_is_that_of_its_last_whole_row(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    assert last_step(file) is None
    file.write_text("step,seed,peer,metric,value\n")
    assert last_step(file) is None
    long = "".join(f"{step},0,0,eval/return,1.0\n" for step in range(1000))
    file.write_text("step,seed,peer,metric,value\n" + long + "10")
    assert last_step(file) == 999
