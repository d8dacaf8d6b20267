"""Training from end to end, as its users start it, on small budgets."""

import csv
import json

import numpy as np
import pytest
import torch

import dpd
from dpd.agents.base import Batch
from dpd.cli import main, parse_train
from dpd.run.stack import env_seeds
from dpd.run.train import iterate
from dpd.run.training import Training

SMALL = ["--n-envs", "2", "--n-steps", "64", "--total-steps", "1024", "--evals", "2"]
SMALL += ["--eval-episodes", "1", "--final-episodes", "1"]
SMALL += ["--preset", "paper", "--distill.steps", "4"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Train two seeds of two peers for four iterations of 2 x 2 x 64 steps."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert (
        main(["train", "Swimmer-v5", "--seeds", "2", "--seed", "3", *SMALL, "--out", str(out)]) == 0
    )
    return out


def rows(run_dir, metric):
    """Return a metric's rows of metrics.csv."""
    with (run_dir / "metrics.csv").open() as file:
        return [r for r in csv.DictReader(file) if r["metric"] == metric]


def test_a_run_leaves_policies_curves_and_settings(run_dir):
    names = {
        f"seed{s}-peer{p}{b}.safetensors" for s in (3, 4) for p in (0, 1) for b in ("", "-best")
    }
    assert {p.name for p in (run_dir / "policies").iterdir()} == names
    learners = {f"seed{seed}-peer{peer}" for seed in (3, 4) for peer in (0, 1)}
    assert {p.name for p in (run_dir / "tb").iterdir()} == {"run", *learners}
    assert (run_dir / "curves.png").stat().st_size > 10_000
    assert json.loads((run_dir / "config.json").read_text())["seeds"] == 2


def test_the_x_axis_counts_the_steps_of_all_peers_of_a_seed(run_dir):
    # 1024 steps / (2 peers x 2 envs x 64 steps) = 4 iterations, evaluated after 2 and 4
    assert sorted({int(r["step"]) for r in rows(run_dir, "loss/policy")}) == [256, 512, 768, 1024]
    evaluated = rows(run_dir, "eval/return")
    assert sorted({int(r["step"]) for r in evaluated}) == [512, 1024]
    assert len(evaluated) == 2 * 2 * 2


def test_what_distillation_did_is_logged_for_every_learner(run_dir):
    for metric in ("xi_mean", "peer_ahead", "ess", "action_distance", "loss", "dose"):
        logged = rows(run_dir, f"distill/{metric}")
        assert len(logged) == 4 * 4, metric
        assert all(np.isfinite(float(r["value"])) for r in logged)
    assert all(float(r["value"]) > 0 for r in rows(run_dir, "distill/dose"))


def test_a_saved_policy_acts_and_says_where_it_comes_from(run_dir):
    policy = dpd.load(run_dir / "policies" / "seed4-peer1.safetensors")
    act = policy.act(np.zeros(8, np.float32))
    assert act.shape == (2,) and np.abs(act).max() <= 1
    origin = policy.meta.provenance
    assert (origin["seed"], origin["peer"], origin["steps"]) == (4, 1, 1024)


def test_evaluate_reads_run_directories_and_files(run_dir, capsys):
    file = run_dir / "policies" / "seed3-peer0.safetensors"
    assert main(["evaluate", str(file), str(run_dir), "--episodes", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 8  # a file that is named twice is evaluated once
    assert all(len(r["returns"]) == 2 and r["length"] == 1000 for r in found)
    assert main(["evaluate", str(file), "--episodes", "2"]) == 0
    assert f"{found[0]['mean']:,.0f}" in capsys.readouterr().out


def test_a_directory_that_holds_a_run_is_refused(run_dir, capsys):
    before = (run_dir / "metrics.csv").read_bytes()
    assert main(["train", "Swimmer-v5", *SMALL, "--out", str(run_dir)]) == 2
    assert "already contains a run" in capsys.readouterr().err
    assert (run_dir / "metrics.csv").read_bytes() == before


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    def losses(seed):
        training = Training(parse_train(["Swimmer-v5", *SMALL, "--seed", seed]))
        return torch.stack([torch.as_tensor(iterate(training)["loss/policy"]) for _ in range(3)])

    assert torch.equal(losses("0"), losses("0"))
    assert not torch.equal(losses("0"), losses("1"))


def test_a_group_learns_the_same_alone_and_beside_another():
    # two seeds in one stack against the second of them alone; float32, so rounding may differ
    both = Training(parse_train(["Swimmer-v5", *SMALL, "--seeds", "2", "--seed", "0"]))
    alone = Training(parse_train(["Swimmer-v5", *SMALL, "--seeds", "1", "--seed", "1"]))
    for _ in range(2):
        iterate(both), iterate(alone)
    torch.testing.assert_close(
        both.stacks[0].agent.nets.flat[2:], alone.stacks[0].agent.nets.flat, rtol=1e-4, atol=1e-4
    )


def test_the_first_rollout_is_normalised_by_itself_and_later_ones_by_those_before():
    training = Training(parse_train(["Swimmer-v5", *SMALL]))
    training.begin()
    (stack,) = training.stacks
    batches: list[Batch] = []
    stack.method.on_batch = lambda batch, progress: batches.append(batch)  # type: ignore[method-assign]
    iterate(training)
    first = stack.rollout.flat_obs().double()  # 2 envs x 64 steps
    assert stack.agent.obs_norm.moments.count.flatten().tolist() == [128.0001] * 2  # once
    assert_normalised(batches[0], first, first)
    iterate(training)
    assert stack.agent.obs_norm.moments.count.flatten().tolist() == [256.0001] * 2
    assert_normalised(batches[1], stack.rollout.flat_obs().double(), first)


def assert_normalised(batch, obs, seen):
    """Hold what was learnt from [N, S, O] against obs normalised by the moments of `seen`."""
    mean, var = seen.mean(1, keepdim=True), seen.var(1, keepdim=True, correction=0)
    expected = ((obs - mean) / (var + 1e-8).sqrt()).clamp(-10, 10)
    torch.testing.assert_close(batch.data.obs.double(), expected, rtol=1e-3, atol=1e-3)


def test_no_two_learners_share_an_episode():
    seeds = env_seeds([(s, p) for s in range(4) for p in range(4)], 8)
    assert len(set(seeds)) == 4 * 4 * 8


def test_a_nan_stops_the_run_with_one_line(tmp_path, capsys):
    # a learning rate of 1e30 throws the parameters out of float32 within an iteration
    argv = ["train", "Swimmer-v5", *SMALL, "--lr", "1e30", "--out", str(tmp_path / "run")]
    assert main(argv) == 3
    said = capsys.readouterr().out
    assert "of seed 0's peer 0 became NaN or infinite" in said and "Traceback" not in said


def test_learners_start_from_saved_policies(run_dir, tmp_path):
    files = [run_dir / "policies" / f"seed3-peer{p}.safetensors" for p in (0, 1)]
    training = Training(
        parse_train(["Swimmer-v5", *SMALL, "--seeds", "2", "--init-from", *map(str, files)])
    )
    training.begin()
    obs = torch.randn(4, 5, 8) * 3
    acts = training.stacks[0].agent.mode(obs)
    for row in range(4):
        np.testing.assert_allclose(acts[row], dpd.load(files[row % 2]).act(obs[row]), atol=1e-6)
    # 4 iterations of 2 x 64 steps and the normaliser's own 1e-4
    torch.testing.assert_close(
        training.stacks[0].agent.obs_norm.moments.count[:, 0].float(), torch.full((4,), 512.0)
    )
    iterate(training)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--hidden", "32", "32"], "has hidden (64, 64); these learners have (32, 32)"),
        (["--activation", "relu"], "has activation tanh"),
        (["--no-norm-obs"], "has norm_obs True"),
        (["--peers", "3"], "2 policies for 3 learners"),
    ],
)
def test_a_policy_that_does_not_fit_the_learners_is_refused(run_dir, flags, says, capsys):
    files = [str(run_dir / "policies" / f"seed3-peer{p}.safetensors") for p in (0, 1)]
    assert main(["train", "Swimmer-v5", *SMALL, *flags, "--init-from", *files]) == 2
    assert says in capsys.readouterr().err
    assert main(["train", "Hopper-v5", "--init-from", files[0]]) == 2
    assert "has obs_dim 8; these learners have 11" in capsys.readouterr().err
