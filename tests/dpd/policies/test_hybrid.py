"""The hybrid policy: whoever is ahead acts, alike in every form, and bad files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import dpd
from dpd.agents.nets import mlp_shapes
from dpd.distill.exchange import PeerExchange
from dpd.distill.method import Context
from dpd.distill.peers import least_each
from dpd.policies import policyfile
from dpd.policies.hybrid import HybridPolicy, make_hybrid, probes_of
from dpd.policies.hybrid_file import save_hybrid
from dpd.policies.metadata import HYBRID_KEY, NotAPolicy
from dpd.policies.policyfile import Policy
from tests.toy.hybrids import critics_of, group, line_hybrid, near_ties, policy_of, random_hybrid
from tests.toy.two_experts import expert, returns, starts, steer

GROUPS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("td3", "td3"), {}),
    (("sac", "sac", "sac"), {"activation": "elu"}),
    (("ddpg", "ddpg"), {"activation": "tanh", "norm_obs": False}),
    (("ppo", "sac"), {}),
]


def test_each_peer_acts_in_the_half_where_it_is_right() -> None:
    hybrid = line_hybrid()
    x = np.arange(-7, 8, dtype=np.float32).reshape(-1, 1) / 8  # exact in binary
    zero = np.zeros_like(x)
    assert np.array_equal(hybrid.peers[0].act(x), np.maximum(x, zero))
    assert np.array_equal(hybrid.peers[1].act(x), np.minimum(x, zero))
    assert np.array_equal(hybrid.act(x), x)  # the critics' -|x - a| is 0 at a = x alone
    judged = hybrid.judge(torch.from_numpy(x))
    # at x = -7/8 peer 0 acts 0: -|-7/8 - 0|; peer 1 acts -7/8
    assert judged.values[:, 0].tolist() == [-0.875, 0]
    assert judged.best.tolist() == [1] * 7 + [0] * 8  # at 0 both act 0: the first one counts


def expert_critic() -> dict[str, torch.Tensor]:
    """Fit Q(s, a) = -|a - steer(s)|^2 on the plane of the two experts."""
    names = mlp_shapes("critic", [6, 32, 32, 1])
    rng = torch.Generator().manual_seed(0)
    tensors = {
        k: (torch.randn(s, generator=rng) * s[0] ** -0.5).requires_grad_() for k, s in names.items()
    }
    optimizer = torch.optim.Adam(tensors.values(), lr=4e-3)
    state, act = torch.cat([starts(4000, 5), 2 * starts(2000, 6)]), torch.rand(6000, 2) * 2 - 1
    for _ in range(900):
        rows = torch.randint(len(state), (256,), generator=rng)
        x = torch.cat([state[rows], act[rows]], 1)
        for i in range(3):
            x = x @ tensors[f"critic.{i}.weight"] + tensors[f"critic.{i}.bias"]
            x = x.tanh() if i < 2 else x
        wanted = -(act[rows] - steer(state[rows])).square().sum(1, keepdim=True)
        optimizer.zero_grad()
        (x - wanted).square().mean().backward()
        optimizer.step()
    return {k: v.detach() for k, v in tensors.items()}


def mixed(hybrid: HybridPolicy, obs: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Let a random peer act."""
    return hybrid.judge(obs).chosen(torch.randint(2, (len(obs),), generator=rng)).float()


def test_the_hybrid_of_two_half_experts_returns_more_than_both() -> None:
    torch.manual_seed(0)
    peers, critic = [expert(1.0, 1), expert(-1.0, 2)], expert_critic()
    hybrid, start = make_hybrid(peers, [[critic], []], {}), starts(200, 77)
    one, two = (returns(peer.mode, start) for peer in peers)
    own, best = returns(hybrid.mode, start), returns(steer, start)
    rng = torch.Generator().manual_seed(0)
    chance = returns(lambda obs: mixed(hybrid, obs, rng), start)
    # An expert flees in its bad half, where it loses many times what steering costs.
    assert max(one.mean(), two.mean()) < 4 * best.mean()
    assert own.mean() > 1.5 * best.mean() and chance.mean() < 2 * best.mean()
    # the proposition, in every state, but for the error of three small networks
    assert (own > torch.maximum(one, two) - 5).float().mean() > 0.95


@pytest.mark.parametrize("algo", ["td3", "sac"])
def test_values_are_those_of_the_ruler_action(algo: str) -> None:
    agent = group(algo, 3)
    peers = [policy_of(algo, agent, n) for n in range(3)]
    hybrid = make_hybrid(peers, [critics_of(agent, n) for n in range(3)], {})
    obs = torch.randn(50, 5) * 3 + 1
    exchange = PeerExchange(Context(agent, 1, 3, [(0, 0), (0, 1), (0, 2)]), "own", 0, None)
    at_all = obs.expand(3, -1, -1)
    policies, _ = exchange.ask(at_all)
    judged = least_each(exchange.judge(at_all, policies.mode())).amin(2).mean(1)  # [N, P, K]
    torch.testing.assert_close(hybrid.judge(obs).values.float(), judged[0], rtol=1e-4, atol=1e-5)
    assert hybrid.judge(obs).best.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(("algos", "settings"), GROUPS)
def test_one_observation_and_a_batch_get_the_same_action_even_near_ties(
    algos: tuple[str, ...], settings: dict[str, Any]
) -> None:
    hybrid = random_hybrid(algos, **settings)
    ties = near_ties(hybrid)
    best, values = hybrid.judge(ties).best, hybrid.judge(ties).values.sort(0).values
    half = len(ties) // 2
    assert half > 20 and (best[:half] == 0).all() and (best[half:] == 1).all()
    # float32 could not tell these values apart: it has 24 bits
    assert ((values[-1] - values[-2]) / values[-1].abs()).median() < 2**-22
    obs = np.concatenate([ties.numpy(), probes_of(hybrid)])
    batch = hybrid.act(obs)
    np.testing.assert_allclose(np.stack([hybrid.act(x) for x in obs]), batch, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        np.concatenate([hybrid.act(x) for x in np.array_split(obs, 7)]), batch, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("algos", "settings"), GROUPS)
def test_it_acts_as_the_peer_of_the_largest_value(
    algos: tuple[str, ...], settings: dict[str, Any]
) -> None:
    hybrid = random_hybrid(algos, **settings)
    obs = probes_of(hybrid)
    best = hybrid.judge(torch.from_numpy(obs)).best.numpy()
    each = np.stack([peer.act(obs) for peer in hybrid.peers])
    np.testing.assert_allclose(hybrid.act(obs), each[best, np.arange(len(obs))], atol=1e-4)
    assert len(set(best)) == len(algos)


def test_a_file_holds_the_whole_group(tmp_path: Path) -> None:
    hybrid, file = random_hybrid(("ppo", "sac")), tmp_path / "group.safetensors"
    save_hybrid(file, hybrid)
    copy = dpd.load(file)
    assert isinstance(copy, HybridPolicy) and copy.acts_as(hybrid) and hybrid.acts_as(copy)
    assert not copy.acts_as(copy.peers[0]) and not copy.peers[0].acts_as(copy)
    assert copy.hybrid == hybrid.hybrid and copy.hybrid.critics == (0, 2)
    assert copy.meta.algo == "hybrid" and copy.meta.provenance == {"seed": 3, "steps": 100}
    obs = probes_of(hybrid)
    assert np.array_equal(copy.act(obs), hybrid.act(obs))
    assert not random_hybrid(("sac", "ppo")).acts_as(hybrid)


def test_other_readers_of_policies_refuse_the_file_by_its_kind(tmp_path: Path) -> None:
    file = tmp_path / "group.safetensors"
    save_hybrid(file, line_hybrid())
    with pytest.raises(NotAPolicy, match="hybrid policy of several peers, which only dpd evaluate"):
        policyfile.load(file)
    with pytest.raises(ValueError, match="no single network; ask one of its `peers`"):
        line_hybrid().dist(torch.zeros(1, 1))


def rewritten(tmp_path: Path, **changes: Any) -> Path:
    """Write the file of a hybrid with changes in its description."""
    file = tmp_path / "group.safetensors"
    save_hybrid(file, line_hybrid())
    with safe_open(file, framework="pt") as source:
        text = json.loads(source.metadata()[HYBRID_KEY])
        tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
    save_file(tensors, file, metadata={HYBRID_KEY: json.dumps(text | changes)})
    return file


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "has hybrid format 2; this version reads 1"),
        ({"peers": []}, "peers must be a list of 2 to 64"),
        ({"peers": 3}, "peers must be a list of 2 to 64"),
        ({"critics": [1]}, "one number per peer"),
        ({"critics": [1, True]}, "numbers from 0 to 64"),
        ({"critics": [0, 0]}, "expected None"),  # the tensors of critics are not described
        ({"critics": [1, 2]}, "does not fit its description"),
        ({"critics": [1, 10**9]}, "numbers from 0 to 64"),
        ({"provenance": None}, "provenance is no object"),
        ({"peers": [{}, {}]}, "has policy format None"),
    ],
)
def test_a_bad_description_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(NotAPolicy, match=reason):
        dpd.load(rewritten(tmp_path, **changes))


def test_bad_numbers_are_refused(tmp_path: Path) -> None:
    hybrid, file = line_hybrid(), tmp_path / "group.safetensors"
    hybrid.parts[1]["critic0.0.weight"] = torch.full((2, 2), torch.nan)
    save_hybrid(file, hybrid)
    with pytest.raises(NotAPolicy, match=r"critic0\.0\.weight contains NaN"):
        dpd.load(file)
    hybrid = line_hybrid()
    hybrid.parts[1]["act_high"] = torch.full((1,), 2.0)
    save_hybrid(file, hybrid)
    with pytest.raises(NotAPolicy, match="the peers differ in act_high"):
        dpd.load(file)


def test_policies_that_make_no_hybrid_are_refused() -> None:
    good, other = random_hybrid(("td3", "td3")), line_hybrid()
    a, b = good.peers
    agent = group("td3")
    critics = critics_of(agent, 0)
    for peers, judges, reason in (
        ([a], [critics], "there is only one peer"),
        ([a, b], [[], []], "no peer has critics of actions"),
        ([a, other.peers[0]], [critics, []], "the peers differ in obs_dim"),
        ([other.peers[0], other.peers[1]], [critics, []], "critics have the widths of other"),
    ):
        with pytest.raises(ValueError, match=reason):
            make_hybrid(peers, judges, {})
    moved = Policy(b.tensors | {"act_low": b.tensors["act_low"] - 1}, b.meta)
    with pytest.raises(ValueError, match="the peers differ in act_low"):
        make_hybrid([a, moved], [critics, []], {})
