"""Methods on another device: a whole iteration of learners and method waits for nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from elsewhere import META, Elsewhere
from setups import ALGO, REPLAYED, O
from setups import A as ACT
from taught import PLAIN, drawn

from dpd.agents.base import Metrics
from dpd.agents.learners import Learners
from dpd.agents.student_config import StudentConfig
from dpd.distill import METHODS
from dpd.distill.base import Context
from dpd.distill.peers_config import DPDConfig
from dpd.distill.teacher import Teacher

STUDENT = StudentConfig(n_envs=4, n_steps=16, minibatch_size=16, capacity=400, hidden=(16, 16))
SEEDS = [(0, 0), (0, 1), (1, 0), (1, 1)]
FEW: dict[str, Any] = {"steps": 2, "batch_size": 16}
TAUGHT: dict[str, Any] = {"bc": {}, "dagger": {}, "on-policy": {}, "scaffold": {}, "kickstart": {}}
TAUGHT |= {"ppd": {}, "n-distill": {}, "reverse-kl": {}}
UNSCALED = replace(ALGO, norm_adv=False, norm_reward=False)
ALGOS = {"student": STUDENT, "ppo": UNSCALED}
CASES: dict[str, tuple[Any, Any]] = {
    "none": (METHODS["none"](), ALGO),
    "paper": (DPDConfig(**FEW), ALGO),
    "hard, return, shuffled": (
        DPDConfig(gate="hard", ruler="return", control="shuffled", **FEW),
        ALGO,
    ),
    "in the loss": (DPDConfig(dose="loss", coef=0.1, divergence="kl_forward"), ALGO),
    "own states, one way": (DPDConfig(states="mixed", students=(0,), memory=32, **FEW), ALGO),
    **{f"paper, {name}": (DPDConfig(**FEW), algo) for name, algo in REPLAYED.items()},
    "lcb": (DPDConfig(ruler="lcb", gate="hard", states="mixed", **FEW), REPLAYED["td3"]),
    "in SAC's loss": (DPDConfig(dose="loss", ruler="action"), REPLAYED["sac"]),
    **{name: (METHODS[name](**own), ALGOS[METHODS[name].ALGO]) for name, own in TAUGHT.items()},
}


def iterate(agent: Learners, method: Any, progress: float) -> Metrics:
    """Do what a stack of a run does, without an environment."""
    rollout, noise = agent.new_rollout(), method.actor.noise()
    rollout.act[:, 0] = method.actor.act(rollout.obs[:, 0], noise[:, 0])
    method.see(rollout)
    batch = agent.prepare(rollout)
    if agent.journal is not None:
        agent.journal._ready = True  # type: ignore[attr-defined] # what is waited for, until true
    method.prepare(batch, progress)
    metrics = agent.update(batch, progress, method.loss)
    metrics |= method.step()
    agent.observe(rollout)
    return metrics


@pytest.mark.parametrize("name", CASES)
def test_an_iteration_with_a_method_stays_on_the_device(name: str) -> None:
    config, algo = CASES[name]
    teacher = Teacher([drawn(PLAIN)]).on(META) if name in TAUGHT else None
    with Elsewhere():
        agent = algo.build(O, ACT, SEEDS, META)
        method = config.build(Context(agent, 2, 2, SEEDS, teacher))
        for k in range(2):
            metrics = iterate(agent, method, k / 2)
    assert all(x.device == META for x in metrics.values())
    assert any(metric.startswith("distill/") for metric in metrics)


def test_what_waits_or_mixes_devices_is_noticed() -> None:
    x = torch.zeros(2, 3, device=META)
    with Elsewhere():
        with pytest.raises(AssertionError, match="mixes"):
            x[torch.tensor([0])]
        with pytest.raises((RuntimeError, NotImplementedError)):
            bool((x > 0).all())
