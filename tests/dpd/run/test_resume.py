"""A run that is stopped, or dies, goes on exactly where it was."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dpd
import dpd.run.training
from dpd.cli import main, parse_train
from dpd.files import read_lock
from dpd.run.changes import refuse_changes
from dpd.run.checkpoint import CHECKPOINT_KEY, Checkpoints, read, write_tensors
from dpd.run.settings import saved_settings
from tests.toy.gpu_runs import as_on_a_gpu

pytestmark = pytest.mark.usefixtures("no_report")
SMALL = ["--n-envs", "2", "--n-steps", "64", "--eval-episodes", "1", "--final-episodes", "1"]
SMALL += ["--checkpoint-every", "0", "--evals", "1"]
PAPER = ["--preset", "paper", "--distill.steps", "4"]
PER_ITERATION = 2 * 2 * 64
QUICK = ["--epochs", "1"]
# A run that is still going however late its signal comes, and that does not depend on its budget:
# a constant learning rate, and a record of every iteration.
LONG = 4000
ENDLESS = [*QUICK, "--lr-schedule", "constant", "--records", str(LONG)]
REPLAY = ["--capacity", "200", "--learning-starts", "128", "--minibatch-size", "16"]
REPLAY += ["--updates-per-step", "0.125", "--hidden", "16", "16"]


def command(out: Path, *flags: str, iterations: int, env: str = "Hopper-v5") -> list[str]:
    """Return the words after `dpd` of a new run; a Hopper falls after some 20 steps at first."""
    budget = ["--total-steps", str(iterations * PER_ITERATION)]
    return ["train", env, *SMALL, *PAPER, *flags, *budget, "--out", str(out)]


def learned(run_dir: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a run's newest checkpoint: all that its future depends on."""
    return read(Checkpoints(run_dir, keep=1).files()[0])[0]


def logged(run_dir: Path) -> list[list[str]]:
    """Return the rows of metrics.csv that are no measurements of time."""
    with (run_dir / "metrics.csv").open() as file:
        return [row for row in csv.reader(file) if not row[3].startswith("time/")]


def assert_same(one: Path, other: Path) -> None:
    """Hold two runs against each other bit for bit."""
    ours, theirs = learned(one), learned(other)
    assert_same_tensors(ours, theirs)
    assert logged(one) == logged(other)
    names = sorted(p.name for p in (one / "policies").iterdir())
    assert names == sorted(p.name for p in (other / "policies").iterdir())
    for name in names:
        files = one / "policies" / name, other / "policies" / name
        assert_same_tensors(*map(load_file, files))


def assert_same_tensors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        # as bytes, because NaN marks an episode that has not ended
        assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (x, theirs[name]))), name


@pytest.mark.parametrize(
    "flags",
    [
        ("--seeds", "1"),
        ("--seeds", "2", "--seed", "5"),
        ("--method", "none"),
        ("--distill.memory", "300", "--distill.every", "2", "--distill.gate", "hard"),
        ("--preset", "modern", "--no-norm-obs", "--no-norm-reward"),
        ("--preset", "modern", "--share-experience", "--distill.target-kl", "0.1", "--seeds", "2"),
        ("--preset", "modern", "--distill.states", "samples"),
        ("--method", "none", "--peers", "1", "--reuse-iterations", "2"),
        ("--distill.leader", "return", "--distill.ruler", "advantage", "--seeds", "2"),
        ("--algo", "td3", *REPLAY),
        ("--algo", "ddpg", *REPLAY, "--method", "none", "--exploration", "param", "--seeds", "2"),
        ("--algo", "ddpg", *REPLAY, "--method", "none", "--exploration", "ou", "--n-step", "3"),
        ("--algo", "sac", *REPLAY, "--method", "none", "--norm-obs"),
        ("--algo", "sac", *REPLAY, "--act", "hybrid", "--act-every", "7", "--seeds", "2"),
        ("--algo", "td3", *REPLAY, "--distill.dose", "loss", "--distill.states", "mixed"),
        ("--algo", "sac", *REPLAY, "--share-experience", "--distill.ruler", "lcb", "--seeds", "2"),
        ("--stagger", "--seeds", "2", *QUICK),
        ("--randomize", "mass=0.5:2,friction=0.5:1.5", *QUICK),
    ],
    ids=[
        "one group",
        "two groups",
        "no distillation",
        "a memory",
        "inside the loss",
        "shared experience on a leash",
        "a leash at the samples",
        "own past",
        "the better half leads, by what was played",
        "td3",
        "ddpg, parameter noise, two groups",
        "ddpg, ou, three steps",
        "sac, normalised",
        "sac, acting by turns",
        "td3, inside the loss",
        "sac, a pool",
        "staggered",
        "a randomized task",
    ],
)
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(tmp_path, flags):
    # The budget is raised at the resume, on which a constant learning rate does not depend. A
    # replay of 200 steps has gone round by the end.
    flags = (*flags, *([] if "--algo" in flags else ["--lr-schedule", "constant"]))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(clean(command(whole, *flags, "--evals", "3", iterations=6))) == 0
    assert main(clean(command(parts, *flags, "--evals", "1", iterations=2))) == 0
    assert learned(parts)["training.stack0.env.elapsed"].any()  # in the middle of episodes
    more = ["--total-steps", str(6 * PER_ITERATION), "--evals", "3"]
    assert main(["train", "--resume", str(parts), *more]) == 0
    assert_same(whole, parts)


def clean(argv: list[str]) -> list[str]:
    """Leave out what does nothing for the method chosen, which would be refused."""
    if {"none", "modern", "loss"} & set(argv):
        i = argv.index(PAPER[0])
        return argv[:i] + argv[i + len(PAPER) :]
    return argv


def start(argv: list[str], *program: str) -> subprocess.Popen[str]:
    """Start `dpd` as its users do, or another program of Python's."""
    return subprocess.Popen(
        [sys.executable, *(program or ("-m", "dpd")), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_checkpoint(process: subprocess.Popen[str], run_dir: Path, past: int = 0) -> None:
    """Wait until a run has a checkpoint beyond a number of steps."""
    deadline = time.monotonic() + 60
    while not any(int(f.stem[5:]) > past for f in Checkpoints(run_dir, 1).files()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


@pytest.mark.parametrize("iterations", [3, 2], ids=["in the middle", "at the end"])
def test_a_stop_ends_an_evaluation_which_the_resumed_run_takes_again(
    tmp_path, monkeypatch, iterations
):
    # An evaluation follows the second iteration; at the second one's third step a signal comes.
    flags = [*QUICK, "--lr-schedule", "constant", "--evals", str(iterations)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(command(whole, *flags, iterations=iterations)) == 0
    play, calls = dpd.run.training.run_episodes, []

    def interrupted(env, act, n, *stop):
        def act_and_signal(obs):
            calls.append(obs)
            if len(calls) == 40 + 3:
                os.kill(os.getpid(), signal.SIGTERM)
            assert len(calls) <= 40 + 3, "the evaluation did not stop"
            return act(obs)

        before = len(calls)
        outcome = play(env, act_and_signal, n, *stop)
        calls.extend([None] * (40 - len(calls) + before))
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(dpd.run.training, "run_episodes", interrupted)
        assert main(command(parts, *flags, iterations=iterations)) == 128 + signal.SIGTERM
    assert main(["train", "--resume", str(parts)]) == 0
    assert_same(whole, parts)


@pytest.mark.parametrize(("sign", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on_and_then_ends_as_if_never_stopped(tmp_path, sign, status):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with start(command(parts, *ENDLESS, iterations=LONG)) as process:
        wait_for_checkpoint(process, parts)
        process.send_signal(sign)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == status
    assert read_lock(parts) == (False, "")
    (found,) = re.findall(r"stopped at ([\d,]+) steps", said)
    done = int(found.replace(",", ""))
    assert 0 < done < LONG * PER_ITERATION
    assert f"dpd train --resume {parts}" in said
    for peer in (0, 1):
        file = parts / "policies" / f"seed0-peer{peer}.safetensors"
        assert dpd.load(file).meta.provenance["steps"] == done
    assert_ends_as_never_stopped(parts, whole)


def test_a_killed_run_resumes_exactly(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with start(command(parts, *ENDLESS, iterations=LONG)) as process:
        wait_for_checkpoint(process, parts)
        process.kill()
        process.communicate(timeout=60)
    assert read_lock(parts) == (False, str(process.pid))  # by which `dpd watch` knows it
    (parts / "checkpoints" / ".part.step-1.safetensors").write_bytes(b"half a file")
    assert_ends_as_never_stopped(parts, whole)
    assert not list((parts / "checkpoints").glob(".part*"))


def assert_ends_as_never_stopped(parts: Path, whole: Path) -> None:
    """Give a run that was cut off a few iterations more, and hold it against one in one piece."""
    done = int(Checkpoints(parts, 1).files()[0].stem[5:]) // PER_ITERATION
    more = ["--total-steps", str((done + 4) * PER_ITERATION)]
    assert main(["train", "--resume", str(parts), *more]) == 0
    assert main(command(whole, *ENDLESS, iterations=done + 4)) == 0
    assert_same(whole, parts)


# Says when an iteration has begun: a signal before the first one ends the run without any.
ANNOUNCED = """
import sys
from dpd.cli import main
import dpd.run.train
iterate = dpd.run.train.iterate
def announced(training):
    print("begun", flush=True)
    return iterate(training)
dpd.run.train.iterate = announced
sys.exit(main(sys.argv[1:]))
"""


def test_a_second_signal_stops_at_once(tmp_path):
    # an iteration of 64 x 4096 steps takes far longer than this test waits
    argv = ["train", "Humanoid-v5", "--n-envs", "64", "--n-steps", "4096", "--out", str(tmp_path)]
    with start([*argv, "--total-steps", "10000000"], "-c", ANNOUNCED) as process:
        assert process.stdout is not None
        assert any(line == "begun\n" for line in process.stdout)
        process.send_signal(signal.SIGINT)
        # read up to the first signal's answer, so that the two do not arrive as one
        assert any("finishing the iteration" in line for line in process.stdout)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in said
    assert learned(tmp_path)["training.iteration"] == 0


def test_a_broken_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out in (whole, parts):
        assert main(command(out, iterations=4)) == 0
    newest, before, *_ = Checkpoints(parts, 1).files()
    data = bytearray(newest.read_bytes())
    data[-100] ^= 1  # one bit of one number
    newest.write_bytes(data)
    before.write_bytes(before.read_bytes())
    capsys.readouterr()
    assert main(["train", "--resume", str(parts)]) == 0
    said = capsys.readouterr().out
    assert f"{newest} is corrupt" in said
    assert f"resumed at {3 * PER_ITERATION:,} steps" in said
    assert_same(whole, parts)


def test_a_run_without_a_whole_checkpoint_is_refused(tmp_path, capsys):
    assert main(command(tmp_path, iterations=1)) == 0
    for file in Checkpoints(tmp_path, 1).files():
        file.write_bytes(b"")
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(command(whole, iterations=2)) == 0
    parts.mkdir()
    (parts / "config.json").write_text((whole / "config.json").read_text())
    assert main(["train", "--resume", str(parts)]) == 0
    assert_same(whole, parts)


def test_what_a_resumed_run_may_not_change_is_refused(tmp_path, capsys):
    assert main(command(tmp_path, iterations=2)) == 0
    capsys.readouterr()
    refused = {
        ("--lr", "1"): "--lr would change from 0.0003 to 1.0",
        ("--distill.alpha", "2"): "--distill would change",
        ("--method", "none"): "leave --method out",
        ("--preset", "modern"): "leave --preset out",  # the run has paper
        ("--seed", "3"): "--seed would change",
        ("--total-steps", str(PER_ITERATION)): "has already done 512 steps",
        ("--config", "x.json"): "leave --config out",
    }
    for flags, says in refused.items():
        assert main(["train", "--resume", str(tmp_path), *flags]) == 2
        told = capsys.readouterr().err
        assert says in told and told.count("\n") == 1, told
    assert main(["train", "--resume", str(tmp_path)]) == 0
    assert "are done" in capsys.readouterr().out
    assert main(["train", "--resume", str(tmp_path / "nothing")]) == 2
    assert "no run to resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda saved: saved | {"foo": 1}, "(unknown setting --foo)"),
        (lambda saved: saved | {"distill": {}}, "(its settings lack --distill.alpha)"),
        (lambda saved: {k: v for k, v in saved.items() if k != "gamma"}, "lack --gamma)"),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_run_of_another_version_is_refused_and_nothing_is_written(
    tmp_path, capsys, change, says, workers
):
    config = parse_train(command(tmp_path, "--seeds", "2", "--workers", workers, iterations=1)[1:])
    saved = json.dumps(change(json.loads(json.dumps(config.as_json()))))
    (tmp_path / "config.json").write_text(saved)
    assert main(["train", "--resume", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert (
        told.startswith(f"dpd: {tmp_path} was written by another version of dpd") and says in told
    )
    assert "with that version" in told and "--init-from" in told and told.count("\n") == 1
    assert (tmp_path / "config.json").read_text() == saved


def test_a_checkpoint_of_another_format_is_not_called_corrupt(tmp_path, capsys):
    assert main(command(tmp_path, iterations=1)) == 0
    for file in Checkpoints(tmp_path, 1).files():
        state, info = read(file)
        metadata = asdict(info) | {"format": 1}
        write_tensors(file, state, CHECKPOINT_KEY, metadata)
    capsys.readouterr()
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "another version of dpd (checkpoint format 1" in capsys.readouterr().err


def test_a_run_goes_on_on_another_gpu_and_not_on_another_kind_of_device(tmp_path, capsys):
    assert main(command(tmp_path, iterations=2)) == 0
    as_on_a_gpu(tmp_path, "cpu")
    capsys.readouterr()
    more = ["train", "--resume", str(tmp_path), "--total-steps", str(3 * PER_ITERATION)]
    assert main(more) == 2
    told = capsys.readouterr().err
    assert "another kind of device" in told and "--init-from" in told and told.count("\n") == 1
    as_on_a_gpu(tmp_path, "cuda:0")
    assert main([*more, "--device", "cpu"]) == 2
    assert "--device would change from cuda:0 to cpu" in capsys.readouterr().err
    config = parse_train(["--resume", str(tmp_path), "--device", "cuda:1", "--no-record-updates"])
    refuse_changes(saved_settings(tmp_path), config)  # raises where it may not go on


def test_without_snapshots_resume_begins_new_episodes_and_says_so(tmp_path, capsys):
    # native simulators can be copied, Gymnasium's own cannot
    flags = ("--backend", "gymnasium")
    assert main(command(tmp_path, *flags, iterations=2, env="Swimmer-v5")) == 0
    capsys.readouterr()
    before = learned(tmp_path)
    assert not [name for name in before if name.startswith("training.stack0.env")]
    assert main(["train", "--resume", str(tmp_path), "--total-steps", "1024"]) == 0
    assert "new episodes begin" in capsys.readouterr().out
    # 64 steps x 2 iterations since the resume, not 4: the episodes begun before it are forgotten
    assert learned(tmp_path)["training.stack0.episodes.length"].unique().tolist() == [128]


def test_the_last_few_checkpoints_and_the_best_are_kept(tmp_path):
    assert main(command(tmp_path, "--keep", "2", "--evals", "8", iterations=8)) == 0
    scores: dict[int, list[float]] = {}
    for row in logged(tmp_path):
        if row[3] == "eval/return":
            scores.setdefault(int(row[0]), []).append(float(row[4]))
    best = max(scores, key=lambda step: sum(scores[step]))
    expected = {best, 7 * PER_ITERATION, 8 * PER_ITERATION}
    assert {int(f.stem[5:]) for f in Checkpoints(tmp_path, 1).files()} == expected


def test_two_processes_with_one_seed_learn_the_same_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # as a user starts them
    outs = [tmp_path / "one", tmp_path / "other"]
    for out in outs:
        with start(command(out, "--seeds", "2", *QUICK, iterations=4)) as process:
            process.communicate(timeout=60)
        assert process.returncode == 0
    assert_same(*outs)
    assert json.loads((outs[0] / "config.json").read_text())["seeds"] == 2
