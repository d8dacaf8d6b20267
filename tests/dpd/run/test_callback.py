"""Callbacks see what is logged, and stop a run as Ctrl-C does."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

import dpd
import dpd.log.log
from dpd.errors import BadInput
from dpd.run.outcome import TrainOutcome
from tests.toy.runs import unreported
from tests.toy.short import SHORT

FOUR = SHORT | {"total_steps": 1024, "evals": 2}  # 4 iterations, evaluations after 2 and 4


class Recorder(dpd.Callback):
    """Keeps what it sees."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, float]] = []
        self.last: dpd.TrainingState | None = None

    def on_iteration(self, state: dpd.TrainingState) -> None:
        self.seen.append(("iteration", state.steps, state.of("seed0-peer1")["loss/policy"]))
        self.last = state

    def on_evaluation(self, state: dpd.TrainingState) -> None:
        self.seen.append(("evaluation", state.steps, state.of("seed0-peer1")["eval/return"]))
        assert (state.path / "policies" / "seed0-peer1-best.safetensors").is_file()


class StopAfter(dpd.Callback):
    """Stops in one of four ways after the first iteration, or after the first evaluation."""

    def __init__(self, way: str) -> None:
        self.way = way

    def on_iteration(self, state: dpd.TrainingState) -> bool:
        if self.way == "exception":
            raise dpd.StopTraining
        if self.way == "error":
            raise ZeroDivisionError("mine")
        return self.way == "value"

    def on_evaluation(self, state: dpd.TrainingState) -> bool:
        return self.way == "evaluation"


@pytest.fixture(autouse=True, scope="module")
def _no_report() -> Iterator[None]:
    with unreported():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """Train without a stop."""
    recorder, out = Recorder(), tmp_path_factory.mktemp("callback") / "whole"
    run = dpd.train("Swimmer-v5", callbacks=[recorder], out=out, **FOUR)
    return run.path, recorder


def test_callbacks_see_every_iteration_and_evaluation_as_logged(
    whole: tuple[Path, Recorder],
) -> None:
    path, recorder = whole
    kinds = [(kind, steps) for kind, steps, _ in recorder.seen]
    assert kinds == [
        ("iteration", 256),
        ("evaluation", 512),
        ("iteration", 512),
        ("iteration", 768),
        ("evaluation", 1024),
        ("iteration", 1024),
    ]
    _, losses = TrainOutcome(path).curve("loss/policy", seed=0, peer=1)
    _, returns = TrainOutcome(path).curve("eval/return", seed=0, peer=1)
    assert [v for k, _, v in recorder.seen if k == "iteration"] == pytest.approx(losses)
    assert [v for k, _, v in recorder.seen if k == "evaluation"] == pytest.approx(returns)
    last = recorder.last
    assert last is not None and (last.iteration, last.iterations) == (4, 4)
    assert list(last.learners) == ["seed0-peer0", "seed0-peer1"]


def test_the_returns_of_policies_that_a_resumed_run_replaces_are_removed(tmp_path: Path) -> None:
    one = SHORT | {"total_steps": 256, "evals": 1}
    run = dpd.train("Swimmer-v5", out=tmp_path / "run", **one)
    (run.path / "evaluation.json").write_text("[]")
    dpd.train(resume=run.path)  # does nothing: all steps are done
    assert (run.path / "evaluation.json").is_file()
    more = dpd.train(resume=run.path, total_steps=1024, callbacks=[StopAfter("value")])
    assert more.is_stopped and more.policies == ()
    assert not (run.path / "evaluation.json").exists()


@pytest.mark.parametrize("way", ["value", "exception", "error", "evaluation"])
def test_a_stopped_run_continues_bit_for_bit(
    way: str, whole: tuple[Path, Recorder], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    if way == "error":
        with pytest.raises(ZeroDivisionError, match="mine"):
            dpd.train("Swimmer-v5", callbacks=[StopAfter(way)], out=out, **FOUR)
    else:
        stopped = dpd.train("Swimmer-v5", callbacks=[StopAfter(way)], out=out, **FOUR)
        assert stopped.is_stopped and stopped.path == out and stopped.policies == ()
    steps = 512 if way == "evaluation" else 256
    assert dpd.load(out / "policies" / "seed0-peer0.safetensors").meta.provenance["steps"] == steps
    assert not dpd.train(resume=out).is_stopped
    for name in ("seed0-peer0", "seed0-peer1-best"):
        files = (folder / "policies" / f"{name}.safetensors" for folder in (out, whole[0]))
        one, other = map(load_file, files)
        assert one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)


def test_a_stop_at_the_end_is_none(tmp_path: Path) -> None:
    one = SHORT | {"total_steps": 256, "evals": 1}
    out = tmp_path / "run"
    assert not dpd.train(
        "Swimmer-v5", callbacks=[StopAfter("evaluation")], out=out, **one
    ).is_stopped


def test_callbacks_take_no_further_transfer_from_the_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    transfers: list[int] = []
    to_host = dpd.log.log.to_host

    def counted(*given):
        transfers.append(1)
        return to_host(*given)

    monkeypatch.setattr(dpd.log.log, "to_host", counted)
    counts = []
    for k, callbacks in enumerate(([], [Recorder(), Recorder()])):
        transfers.clear()
        dpd.train("Swimmer-v5", callbacks=callbacks, out=tmp_path / str(k), **SHORT)
        counts.append(len(transfers))
    assert counts == [2, 2]  # one for each iteration, by the log


def test_callbacks_of_learners_in_other_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="leave callbacks out, or --workers"):
        dpd.train(
            "Swimmer-v5", callbacks=[Recorder()], seeds=2, workers=2, out=tmp_path / "x", **SHORT
        )
    assert not (tmp_path / "x").exists()
