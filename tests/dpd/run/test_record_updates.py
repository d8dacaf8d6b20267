"""Recorded updates from the command line: how to do without, and what happens where they fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dpd.agents.graphs import Graphs, NotRecorded
from dpd.cli import main, parse_train
from dpd.run.train import iterate
from dpd.run.training import Training
from tests.toy.meta_device import Recorded

FEW = ["Swimmer-v5", "--n-envs", "2", "--n-steps", "64", "--total-steps", "512"]
ENDS = ["--evals", "1", "--eval-episodes", "1", "--final-episodes", "1"]


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let learners on the CPU record, as they do on a GPU."""
    monkeypatch.setattr(
        "dpd.agents.learners.Graphs", lambda device: Graphs(torch.device("cuda"), record=Recorded)
    )


@pytest.mark.parametrize(
    ("flags", "is_recorded"),
    [([], True), (["--preset", "paper"], True), (["--no-record-updates"], False)],
)
def test_updates_are_recorded_unless_a_flag_turns_it_off(
    flags: list[str], is_recorded: bool, recording: None
) -> None:
    before = Recorded.made
    training = Training(parse_train([*FEW, *flags]))
    iterate(training)
    assert (Recorded.made > before) == is_recorded


def test_what_can_not_be_recorded_is_said_in_one_line_and_goes_on_without(
    recording: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(work: object, args: object) -> None:
        raise NotRecorded("CUDA cannot record an update as a graph: it is not permitted")

    monkeypatch.setattr(Recorded, "__init__", lambda self, work, args: refused(work, args))
    out = tmp_path / "run"
    assert main(["train", *FEW, *ENDS, "--kernels", "torch", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "it is not permitted" in said
    assert f"without CUDA graphs: dpd train --resume {out} --no-record-updates" in said
    assert main(["train", "--resume", str(out), "--no-record-updates"]) == 0
