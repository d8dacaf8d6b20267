"""What happens to a run when numbers, disks or other runs go wrong."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from dpd.agents.base import part
from dpd.agents.ppo import PPO
from dpd.cli import main
from dpd.errors import BadInput
from dpd.files import replacing
from dpd.run.checkpoint import BadFile, CheckpointInfo, Checkpoints, read
from dpd.run.directory import locked
from tests.dpd.run.test_resume import (
    PER_ITERATION,
    assert_same_tensors,
    command,
    learned,
    logged,
    start,
    wait_for_checkpoint,
)


class Bursting(gymnasium.Env):
    """Observes ever larger numbers, and infinity from the tenth step on."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        size = np.inf if self.t >= 10 else self.t
        return np.full(2, size, np.float32), 0.0, False, False, {}


gymnasium.register("Bursting-v0", f"{__name__}:Bursting", max_episode_steps=50)

TWO_SEEDS = ("--seeds", "2", "--checkpoint-every", "1e9", "--evals", "3")


def diverge(monkeypatch, row: int, at: int, times: int = 1) -> None:
    """Make a learner's parameters NaN in its update number `at`, so many times."""
    update, seen = PPO.update, {"updates": 0, "times": 0}

    def poisoned(self, batch, progress, extra=None):
        metrics = update(self, batch, progress, extra)
        seen["updates"] += 1
        if seen["updates"] >= at and seen["times"] < times:
            seen["times"] += 1
            self.nets.views["actor.0.weight"][row] = torch.nan
        return metrics

    monkeypatch.setattr(PPO, "update", poisoned)


def rows_of(state, group: int) -> dict[str, torch.Tensor]:
    """Return what a checkpoint holds of the learners of one of two groups of two."""
    return {
        name: x[2 * group : 2 * group + 2]
        for name, x in part(state, "training.stack0.agent").items()
        if x.ndim
    }


def test_a_nan_stops_the_run_names_its_source_and_leaves_a_good_checkpoint(
    tmp_path, capsys, monkeypatch
):
    diverge(monkeypatch, row=2, at=4)
    assert main(command(tmp_path, *TWO_SEEDS, iterations=6)) == 3
    said = capsys.readouterr().out
    assert "parameters after the update of seed 1's peer 0 became NaN or infinite" in said
    assert f"after {3 * PER_ITERATION:,} steps" in said
    assert "--on-nan rollback" in said and "Traceback" not in said
    kept = part(learned(tmp_path), "training.stack0.agent")
    assert torch.isfinite(kept["nets.flat"]).all()  # the peer's too


def test_rollback_tries_the_whole_group_again_and_leaves_the_others_as_they_were(
    tmp_path, capsys, monkeypatch
):
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    assert main(command(calm, *TWO_SEEDS, iterations=6)) == 0
    diverge(monkeypatch, row=2, at=4)  # evaluated, and saved, every 2 iterations: back to 2
    assert main(command(rough, *TWO_SEEDS, "--on-nan", "rollback", iterations=6)) == 0
    assert f"rolled back to {2 * PER_ITERATION:,} steps" in capsys.readouterr().out
    ours, undisturbed = learned(rough), learned(calm)
    assert_same_tensors(rows_of(ours, 0), rows_of(undisturbed, 0))
    tried_again = rows_of(ours, 1)
    assert torch.isfinite(tried_again["nets.flat"]).all()
    assert not torch.equal(tried_again["nets.flat"], rows_of(undisturbed, 1)["nets.flat"])
    assert tried_again["lr"].tolist() == [1.5e-4, 1.5e-4]  # half of 3e-4, both peers
    assert read(Checkpoints(rough, 1).files()[0])[1].rollbacks == 1
    steps = [tuple(row[:4]) for row in logged(rough)]
    assert len(set(steps)) == len(steps)  # nothing is recorded twice
    assert sorted(steps) == sorted(tuple(row[:4]) for row in logged(calm))


def test_a_run_that_keeps_diverging_stops(tmp_path, capsys, monkeypatch):
    diverge(monkeypatch, row=0, at=2, times=100)
    assert main(command(tmp_path, "--on-nan", "rollback", iterations=6)) == 3
    assert capsys.readouterr().out.count("rolled back to") == 5
    assert torch.isfinite(learned(tmp_path)["training.stack0.agent.nets.flat"]).all()


def test_a_diverged_action_is_named_before_it_reaches_the_simulator(tmp_path, capsys):
    # an infinite observation gives a NaN action; the probe registers itself when imported
    argv = ["train", "tests.dpd.run.test_directory:Bursting-v0", "--n-envs", "2", "--n-steps", "64"]
    budget = ["--total-steps", "1024", "--out", str(tmp_path)]
    assert main([*argv, *budget]) == 3
    assert "seed 0's peer" in capsys.readouterr().out


def test_a_second_run_into_one_directory_is_refused(tmp_path, capsys):
    with start(command(tmp_path, iterations=4000)) as process:
        wait_for_checkpoint(process, tmp_path)
        for argv in (command(tmp_path, iterations=4), ["train", "--resume", str(tmp_path)]):
            assert main(argv) == 2
            said = capsys.readouterr().err
            assert "in use by another run" in said and str(process.pid) in said
        process.kill()
    with locked(tmp_path):  # a killed run holds nothing
        pass


def test_a_directory_is_held_by_one_and_freed_at_the_end(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(BadInput, match=f"process {os.getpid()}"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_a_file_is_whole_or_not_there(tmp_path):
    file = tmp_path / "x.json"
    with replacing(file, durable=True) as draft:
        draft.write_text("old")
        assert not file.exists()
    assert file.read_text() == "old"
    with pytest.raises(RuntimeError), replacing(file) as draft:
        draft.write_text("half of the n")
        raise RuntimeError
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def facts(step: int, score: float | None = None) -> CheckpointInfo:
    return CheckpointInfo(
        step=step, iteration=step, score=score, rollbacks=0, threads=1, versions={}
    )


def test_no_checkpoint_goes_before_a_newer_one_is_safe(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path, keep=1)
    kept.save({"x": torch.zeros(3)}, facts(1))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dpd.run.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space"):
        kept.save({"x": torch.ones(3)}, facts(2))
    (only,) = (tmp_path / "checkpoints").iterdir()
    assert only.name == "step-000000000001.safetensors"
    state, said = read(kept.files()[0])
    assert state["x"].tolist() == [0, 0, 0] and said.step == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign"])
def test_a_checkpoint_that_is_not_whole_is_never_read(tmp_path, damage):
    kept = Checkpoints(tmp_path, keep=1)
    kept.save({"x": torch.arange(100.0)}, facts(1))
    (file,) = kept.files()
    data = file.read_bytes()
    flipped = data[:-7] + bytes([data[-7] ^ 1]) + data[-6:]
    file.write_bytes({"cut": data[:-8], "flip": flipped, "empty": b"", "foreign": b"PK"}[damage])
    with pytest.raises(BadFile, match="is corrupt"):
        read(file)


def test_a_file_in_the_way_stops_the_run_with_one_line_and_loses_nothing(tmp_path, capsys):
    assert main(command(tmp_path, iterations=2)) == 0
    shutil.rmtree(tmp_path / "policies")
    (tmp_path / "policies").write_text("in the way")
    capsys.readouterr()
    budget = ["--total-steps", str(4 * PER_ITERATION), "--evals", "4"]
    assert main(["train", "--resume", str(tmp_path), *budget]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"with dpd train --resume {tmp_path}" in said
    (tmp_path / "policies").unlink()
    assert main(["train", "--resume", str(tmp_path), *budget]) == 0
    assert learned(tmp_path)["training.iteration"] == 4


FULL = """
mount -t tmpfs -o size=1536k tmpfs {out} || exit 99
{python} -m dpd {argv} > {out}.said 2>&1
echo $? > {out}.status
cp -r {out} {out}.copy
"""


def test_a_full_disk_stops_the_run_with_one_line_and_the_last_checkpoint_loads(tmp_path):
    # of checkpoints of 420 kB three fit at most, beside policies and logs
    out = tmp_path / "disk"
    out.mkdir()
    words = " ".join(command(out, "--keep", "50", iterations=400))
    script = FULL.format(out=out, python=sys.executable, argv=words)
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], check=False, capture_output=True)
    if done.returncode in (1, 99, 127) and not Path(f"{out}.status").exists():
        pytest.skip("this system lets no one mount a small disk")
    said = Path(f"{out}.said").read_text()
    assert Path(f"{out}.status").read_text() == "2\n", said
    last = said.splitlines()[-1]
    assert "space" in last and "Traceback" not in said
    assert f"resume from the last checkpoint with dpd train --resume {out}" in last
    copy = Path(f"{out}.copy")
    assert torch.isfinite(learned(copy)["training.stack0.agent.nets.flat"]).all()
    more = (int(learned(copy)["training.iteration"]) + 2) * PER_ITERATION
    assert main(["train", "--resume", str(copy), "--total-steps", str(more)]) == 0


def test_a_file_that_may_not_grow_stops_the_run_the_same_way(tmp_path, capsys):
    # A checkpoint is some 430 kB, the log grows by 4 kB an iteration: it is what reaches 600 kB.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, before[1]))
    try:
        quick = ("--checkpoint-every", "1e9", "--epochs", "1", "--n-steps", "32")
        status = main(command(tmp_path, *quick, iterations=400))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    assert "resume from the last checkpoint" in capsys.readouterr().err
    assert torch.isfinite(learned(tmp_path)["training.stack0.agent.nets.flat"]).all()
