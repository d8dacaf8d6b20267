"""Methods on another device: a whole iteration of learners and method waits for nothing."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from dpd.agents.base import Metrics
from dpd.agents.config import View
from dpd.agents.graphs import Graphs
from dpd.agents.learners import Learners
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.student_config import StudentConfig
from dpd.distill.method import Context, PeerStack
from dpd.distill.peers_config import DPDConfig
from dpd.distill.table import METHODS
from dpd.distill.teacher import Teacher
from dpd.policies.memory import MemoryMeta
from dpd.policies.policyfile import Policy
from tests.toy.meta_device import META, Recorded, on_device
from tests.toy.peers import ALGO, REPLAYED, O
from tests.toy.peers import A as ACT
from tests.toy.students import PLAIN, drawn, linear
from tests.toy.students import SAC as SQUASHED

KINDS: dict[str, Any] = {name: row.settings for name, row in METHODS.items()}
STUDENT = StudentConfig(n_envs=4, n_steps=16, minibatch_size=16, capacity=400, hidden=(16, 16))
SIZES = replace(STUDENT, hidden=(16, 16), sizes=("16x16", "8x4"))
SEEDS = [(0, 0), (0, 1), (1, 0), (1, 1)]
FEW: dict[str, Any] = {"steps": 2, "batch_size": 16}
# Two updates an iteration: a device without numbers learns nothing from more.
PPO = replace(ALGO, minibatch_size=32, epochs=1)
EVERY: dict[str, Any] = {"ppo": PPO} | {
    name: replace(a, updates_per_step=1 / 32) for name, a in REPLAYED.items()
}
TD3, DDPG, SAC = (EVERY[name] for name in REPLAYED)
UNSCALED = replace(PPO, norm_adv=False, norm_reward=False)
GUIDED: dict[str, Any] = {"steps": 2, "guide_steps": 2}
LATER: dict[str, Any] = {"check_every": 1000, "embed_steps": 2}  # a check waits
THREE_STEPS = {f"paper, {name}, 3 steps": replace(EVERY[name], n_step=3) for name in REPLAYED}
PEERS: dict[str, tuple[Any, Any]] = {
    **{f"none, {name}": (KINDS["none"](), algo) for name, algo in EVERY.items()},
    **{f"paper, {name}": (DPDConfig(**FEW), algo) for name, algo in EVERY.items()},
    **{name: (DPDConfig(**FEW), algo) for name, algo in THREE_STEPS.items()},
    **{
        f"shared dose, {name}": (DPDConfig(dose="shared", **FEW), algo)
        for name, algo in EVERY.items()
    },
    **{f"in the loss, {name}": (DPDConfig(dose="loss"), algo) for name, algo in EVERY.items()},
    "hard, return, shuffled": (
        DPDConfig(gate="hard", ruler="return", control="shuffled", **FEW),
        PPO,
    ),
    "centred": (DPDConfig(ruler="centred", **FEW), PPO),
    "what was played": (DPDConfig(ruler="advantage", **FEW), replace(PPO, peer_gamma=(0.9, 0.8))),
    "what was played, by the mean critic": (DPDConfig(dose="loss", ruler="common"), PPO),
    "in the loss, kl": (DPDConfig(dose="loss", coef=0.1, divergence="kl_forward"), PPO),
    "in the loss, on a leash, shared": (
        DPDConfig(dose="loss", divergence="kl_forward", target_kl=0.3),
        replace(PPO, share_experience=True),
    ),
    "nll, reward's scale, reversed": (
        DPDConfig(divergence="nll", scale="reward", control="reversed", **FEW),
        PPO,
    ),
    "samples, clipped weights, cancelled": (
        DPDConfig(target="sample", weight_clip=(0.01, 100.0), control="cancelled", **FEW),
        PPO,
    ),
    "uniform of the same dose": (DPDConfig(gate="uniform", match_dose=True, **FEW), PPO),
    "own states, one way": (DPDConfig(states="mixed", students=(0,), memory=32, **FEW), PPO),
    "the better half leads": (DPDConfig(leader="return", **FEW), PPO),
    "the better half leads, in the loss": (DPDConfig(leader="return", dose="loss"), SAC),
    "lcb": (DPDConfig(ruler="lcb", gate="hard", states="mixed", **FEW), TD3),
    "critics, whole replay": (DPDConfig(ruler="critics", memory=0, **FEW), DDPG),
    "action, in the loss": (DPDConfig(dose="loss", ruler="action"), SAC),
}
TAUGHT: dict[str, tuple[Any, Any]] = {
    **{
        name: (KINDS[name](steps=2), STUDENT)
        for name in ("bc", "dagger", "on-policy", "progressive")
    },
    "scaffold": (KINDS["scaffold"](**GUIDED), STUDENT),
    "dagger, sizes": (KINDS["dagger"](steps=2), SIZES),
    "dagger, nll": (KINDS["dagger"](steps=2, divergence="nll"), STUDENT),
    "scaffold, wide, samples": (
        KINDS["scaffold"](**GUIDED, label="sample", broad="teacher"),
        STUDENT,
    ),
    "retrieval": (KINDS["retrieval"](steps=2, eta=0.1, **LATER), STUDENT),
    "retrieval, obs": (KINDS["retrieval"](steps=2, keys="obs", **LATER), STUDENT),
    "kickstart": (KINDS["kickstart"](), PPO),
    **{
        f"kickstart, {name}": (KINDS["kickstart"](divergence="mse"), EVERY[name])
        for name in REPLAYED
    },
    **{
        f"kickstart by turns, {name}": (
            KINDS["kickstart"](divergence="mse", beta_start=0.5, rl_coef_points="0:0,0.3:0,0.9:1"),
            algo,
        )
        for name, algo in EVERY.items()
    },
    "ppd": (KINDS["ppd"](), PPO),
    "n-distill": (KINDS["n-distill"](), UNSCALED),
    "reverse-kl": (KINDS["reverse-kl"](reward_coef=0.5), UNSCALED),
}


def on_meta(
    algo: Any, seeds: Sequence[tuple[int, int]] = SEEDS, views: Sequence[View] = ()
) -> Learners:
    """Return learners that record their updates as they would on a GPU."""
    agent: Learners = algo.build(O, ACT, seeds, META, views)
    agent.graphs = Graphs(torch.device("cuda"), record=Recorded)
    if agent.replay is not None:
        agent.replay._ready = True  # what is waited for, until true
    return agent


def checkpoint(steps: int) -> Policy:
    """Return a teacher's policy as it was after so many steps, better the later."""
    policy = drawn(PLAIN, seed=steps)
    known = {"eval_return": float(steps), "steps": steps}
    return Policy(policy.tensors, replace(policy.meta, provenance=known))


def iterate(agent: Learners, method: Any, progress: float) -> Metrics:
    """Do what a stack of a run does, without an environment."""
    rollout, noise = agent.new_rollout(), method.actor.noise()
    rollout.act[:, 0] = method.actor.act(rollout.obs[:, 0], noise[:, 0])
    method.on_rollout(rollout)
    method.on_returns([torch.zeros(len(SEEDS), 20, dtype=torch.float64, device=META)])
    batch = agent.prepare(rollout)
    method.on_batch(batch, progress)
    metrics = agent.update(batch, progress, method.loss)
    metrics |= method.step()
    agent.observe(rollout)
    return metrics


@pytest.mark.parametrize("name", PEERS | TAUGHT)
def test_an_iteration_with_a_method_stays_on_the_device(name: str) -> None:
    config, algo = (PEERS | TAUGHT)[name]
    history = [checkpoint(steps) for steps in (100, 200, 300)]
    teacher = Teacher([checkpoint(400)], history).on(META) if name in TAUGHT else None
    agent = on_meta(algo)
    method = config.build(Context(agent, 2, 2, SEEDS, teacher))
    with on_device():
        for k in range(4):
            metrics = iterate(agent, method, k / 4)
    assert all(x.device == META for x in metrics.values())
    assert any(metric.startswith("distill/") for metric in metrics)


SEEN = View(obs_dim=O, act_dim=ACT, columns=(0, 2), noise=(0.1, 0.0), delay=1, prev_action=True)
HISTORIES = [SEEN, replace(SEEN, history=3)] * 2
ALIKE = [replace(SEEN, history=3)] * 4
VIEWED = {"dagger": HISTORIES, "on-policy": HISTORIES}
VIEWED |= dict.fromkeys(("scaffold", "retrieval", "kickstart", "n-distill"), ALIKE)
VIEWED |= {f"kickstart, {name}": ALIKE for name in REPLAYED}


SEQUENCES: dict[str, Any] = {"gradient_length": 8, "encoder_size": 4}
LAYERED: dict[str, tuple[str, Any, list[View]]] = {
    **{name: (name, TAUGHT[name][1], views) for name, views in VIEWED.items()},
    "gru": ("dagger", replace(STUDENT, encoder="gru", **SEQUENCES), HISTORIES),
    "lstm": ("on-policy", replace(STUDENT, encoder="lstm", **SEQUENCES), HISTORIES),
    "tcn": ("dagger", replace(STUDENT, encoder="tcn", encoder_size=4), ALIKE),
}


@pytest.mark.parametrize("name", LAYERED)
def test_students_that_see_less_stay_on_the_device(name: str) -> None:
    of_method, algo, views = LAYERED[name]
    config = TAUGHT[of_method][0]
    agent = on_meta(algo, views=views)
    method = config.build(Context(agent, 2, 2, SEEDS, Teacher([checkpoint(400)]).on(META)))
    sensors = RowRandom(SEEDS, Stream.SENSOR, META)
    frames = agent.new_frames(agent.config.n_envs, sensors)
    assert frames is not None
    raw = torch.zeros(4, agent.config.n_envs, O, device=META)
    act, over = raw[..., :ACT], raw[..., 0] > 0
    with on_device():
        obs = frames.begin(raw)
        for k in range(3):
            noise = frames.draw(1)[0]
            next_obs, obs = frames.advance(raw, raw, act, over, noise)
            iterate(agent, method, k / 3)
    assert obs.shape[-1] == agent.obs_dim == next_obs.shape[-1] and obs.device == META


def partial_policy() -> Policy:
    """Return a teacher that reads two columns."""
    policy = linear(torch.zeros(2, ACT), torch.zeros(ACT))
    view = View(obs_dim=O, act_dim=ACT, columns=(0, 2))
    return Policy(policy.tensors, replace(policy.meta, obs_dim=O, view=view))


def with_memory() -> Policy:
    """Return a policy that asks a memory of four states, as `retrieval` writes them."""
    policy = drawn(PLAIN)
    kept = MemoryMeta(entries=4, dim=O, query="obs", k=2, tau=0.1, student_weight=0.5)
    tensors = {"memory.keys": torch.randn(4, O), "memory.actions": torch.zeros(4, ACT)}
    return Policy(policy.tensors | tensors, replace(policy.meta, memory=kept))


@pytest.mark.parametrize(
    "policies",
    [
        [drawn(PLAIN, seed=k) for k in range(3)],
        [drawn(SQUASHED)],
        [with_memory()],
        [partial_policy()],
    ],
    ids=["several", "squashed", "memory", "a part of the observations"],
)
def test_a_teacher_answers_on_the_device(policies: list[Policy]) -> None:
    agent, teacher = on_meta(STUDENT), Teacher(policies).on(META)
    config = KINDS["dagger"](steps=2, divergence="mse")
    method = config.build(Context(agent, 2, 2, SEEDS, teacher))
    with on_device():
        iterate(agent, method, 0.0), iterate(agent, method, 0.5)


def test_peers_of_unlike_algorithms_teach_each_other_on_the_device() -> None:
    kinds = {PPO: [(0, 0), (1, 0)], SAC: [(0, 1), (1, 1)]}
    agents = [on_meta(algo, seeds) for algo, seeds in kinds.items()]
    members = [PeerStack(agent, [peer]) for peer, agent in enumerate(agents)]
    config = DPDConfig(ruler="lcb", gate="hard", **FEW)
    methods = [
        config.build(Context(agent, 2, 2, seeds, None, members))
        for agent, seeds in zip(agents, kinds.values(), strict=True)
    ]
    with on_device():
        for k in range(2):
            for member, method in zip(members, methods, strict=True):
                batch = member.agent.prepare(member.agent.new_rollout())
                for other in methods:
                    if other is not method:
                        other.on_peer_batch(member.agent, batch)
                iterate(member.agent, method, k / 2)


def test_what_waits_or_mixes_devices_is_noticed() -> None:
    x = torch.zeros(2, 3, device=META)
    with on_device():
        for index in ([0], torch.tensor([0]), x[:, 0] > 0):
            with pytest.raises(AssertionError, match="indexed"):
                x[index]
        with pytest.raises(AssertionError, match="copies from the host"):
            x.new_tensor([1.0])
        with pytest.raises(AssertionError, match="mixes"):
            x + torch.zeros(3)
        with pytest.raises((RuntimeError, NotImplementedError)):
            bool((x > 0).all())
    with on_device(recording=True):
        with pytest.raises(AssertionError, match="random"):
            x.normal_()
        with pytest.raises(AssertionError, match="inside a recording"):
            x[0].copy_(torch.zeros(3), non_blocking=True)
