"""What holds of the policies of every algorithm: on disk and in other programs they act alike."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import dpd.export as export
from dpd.export import FORMATS, write_checked
from dpd.policies import policyfile
from dpd.policies.policyfile import Policy, probes
from dpd.sb3.export import export_zoo, read_zoo
from tests.toy.policies import EVERY, IN_SB3, described, learners, saved

OBS, ACT = 5, 2
BOUNDS = {"act_low": torch.tensor([-0.4, -2.0]), "act_high": torch.tensor([2.0, -1.0])}


def filed(folder: Path, algo: str, norm_obs: bool = True) -> list[Policy]:
    """Return the policies of two learners, written and read."""
    agent = learners(algo, OBS, ACT, norm_obs=norm_obs)
    policies = []
    for n in range(2):
        path = folder / f"{n}.safetensors"
        policyfile.save(path, agent.export(n) | BOUNDS, described(algo, agent))
        policies.append(policyfile.load(path))
    return policies


@pytest.mark.parametrize("norm_obs", [True, False])
@pytest.mark.parametrize("algo", EVERY)
def test_a_file_is_the_distribution_its_learner_was(
    algo: str, norm_obs: bool, tmp_path: Path
) -> None:
    agent, obs = learners(algo, OBS, ACT, norm_obs=norm_obs), torch.randn(2, 50, OBS) * 4
    with torch.no_grad():
        theirs, mode = agent.dist(agent.obs_norm(obs)), agent.mode(obs)
    assert mode.std() > 0.1  # or all would be alike
    log_std = theirs.log_std.expand_as(theirs.mean)
    for n, policy in enumerate(filed(tmp_path, algo, norm_obs)):
        ours = policy.dist(obs[n])
        assert ours.squashed == theirs.squashed
        torch.testing.assert_close(ours.mean, theirs.mean[n], rtol=1e-5, atol=1e-5)
        found = ours.log_std.expand_as(ours.mean)
        torch.testing.assert_close(found, log_std[n], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(policy.mode(obs[n]), mode[n], rtol=0, atol=1e-5)


@pytest.mark.parametrize("algo", EVERY)
def test_a_file_acts_in_the_bounds_of_the_environment(algo: str, tmp_path: Path) -> None:
    policy, obs = filed(tmp_path, algo)[0], torch.randn(300, OBS) * 4
    # [-1, 1] onto [-0.4, 2] and onto [-2, -1]: a -> -0.4 + (a + 1) * 1.2 and -2 + (a + 1) * 0.5
    expected = policy.mode(obs).numpy() * [1.2, 0.5] + [0.8, -1.5]
    np.testing.assert_allclose(policy.act(obs), expected, atol=1e-6)


def test_what_the_actors_output_is_to_the_distribution(tmp_path: Path) -> None:
    found = {}
    for algo in EVERY:
        meta = saved(tmp_path / algo, algo, "Pendulum-v1").meta
        found[algo] = (meta.algo, meta.squashed, meta.tanh_mean, meta.state_std)
    assert found == {
        "ddpg": ("ddpg", False, True, False),
        "ppo": ("ppo", False, False, False),
        "sac": ("sac", True, False, True),
        "student": ("student", False, False, False),
        "td3": ("td3", False, True, False),
    }


def test_the_deviation_of_td3_is_its_exploration_noise(tmp_path: Path) -> None:
    policy = saved(tmp_path, "td3", "Pendulum-v1", noise_std=0.25)
    dist = policy.dist(torch.zeros(4, 3))
    assert dist.log_std.exp().tolist() == [[pytest.approx(0.25)]]
    assert dist.mean.abs().max() < 1 and not dist.squashed


def test_the_deviation_of_sac_depends_on_the_state_within_its_bounds(tmp_path: Path) -> None:
    policy, obs = filed(tmp_path, "sac")[0], torch.randn(500, OBS) * 4
    assert policy.dist(obs).log_std.std() > 0.1
    policy.tensors["log_std_head.0.bias"] += torch.tensor([100.0, -100.0])
    ends = Policy(policy.tensors, policy.meta).dist(obs).log_std
    assert torch.equal(ends, torch.tensor([2.0, -20.0]).expand(500, 2))


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Hopper-v5"])  # bounds of 2, and of 1
@pytest.mark.parametrize("algo", EVERY)
def test_other_formats_act_as_the_policy(algo: str, env_id: str, tmp_path: Path) -> None:
    policy = saved(tmp_path, algo, env_id)
    for name in ("onnx", "torchscript"):
        write_checked(policy, FORMATS[name], tmp_path / f"p{FORMATS[name].ending}")
    session = onnxruntime.InferenceSession(tmp_path / "p.onnx", providers=["CPUExecutionProvider"])
    with export.quiet():
        script = torch.jit.load(tmp_path / "p.pt")
    in_sb3 = [read_zoo(export_zoo(policy, tmp_path / "zoo"))] if algo in IN_SB3 else []
    obs = probes(policy)
    expected = policy.act(obs)
    half = ((policy.tensors["act_high"] - policy.tensors["act_low"]) / 2).numpy()
    assert (expected / half).std() > 0.1
    for act in (  # float32 rounds coarser than at one where half the observations are at the clip
        np.asarray(session.run(["act"], {"obs": obs})[0]),
        script(torch.from_numpy(obs)).detach().numpy(),
        *(act(obs) for act in in_sb3),
    ):
        np.testing.assert_allclose(act / half, expected / half, rtol=0, atol=1e-5)
