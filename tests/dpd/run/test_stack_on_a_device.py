"""A stack of a run, with its environments, on another device: it waits once an iteration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dpd.agents.config import LearnerConfig
from dpd.agents.offpolicy_config import SACConfig
from dpd.agents.ppo_config import PPOConfig
from dpd.config import StackConfig
from dpd.distill.method import Context
from dpd.distill.peers_config import DPDConfig
from dpd.envs.base import OnDevice, Step
from dpd.run.stack import LearnerStack
from dpd.run.train import learn
from dpd.run.training import Clock
from tests.toy.meta_device import META, on_device

O, A = 4, 2  # noqa: E741
WHO = [(0, 0), (0, 1)]
SMALL: dict[str, Any] = {"n_envs": 3, "n_steps": 8, "minibatch_size": 8, "hidden": (8, 8)}
ALGOS: dict[str, LearnerConfig] = {
    "ppo": PPOConfig(**SMALL, epochs=2),
    "sac": SACConfig(**SMALL, capacity=96, learning_starts=0, n_step=3),
}


class Nowhere:
    """Environments on a device, whose steps say nothing."""

    def __init__(self, n_envs: int, device: torch.device) -> None:
        self.n_envs, self.device = n_envs, device
        self.spec: Any = SimpleNamespace(obs_dim=O, act_dim=A, can_snapshot=False)

    def reset(self) -> torch.Tensor:
        return torch.zeros(self.n_envs, O, device=self.device)

    def step(self, act: torch.Tensor) -> Step:
        assert act.shape == (self.n_envs, A)
        obs, no = self.reset(), torch.zeros(self.n_envs, dtype=torch.bool, device=self.device)
        return Step(obs, obs, obs[:, 0], no, no, ~no)

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(name)


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("place", ["there", "on the host"])
def test_an_iteration_waits_at_its_end_alone(algo: str, place: str) -> None:
    config = StackConfig(algo, ALGOS[algo], (0, 1), 1)
    env: Any = Nowhere(6, META if place == "there" else torch.device("cpu"))
    env = env if place == "there" else OnDevice(env, META)
    agent = config.algo.build(O, A, WHO, META)
    method = DPDConfig(steps=2, batch_size=8).build(Context(agent, 1, 2, WHO))
    stack = LearnerStack(config, WHO, env, lambda seeds: env, agent, method)
    if stack.agent.replay is not None:
        stack.agent.replay._ready = True  # waited for until true
    settled = []
    stack.guard.check_pending = lambda: settled.append(1)  # type: ignore[method-assign]
    with on_device():
        for k in range(2):
            run: Any = SimpleNamespace(stacks=[stack], clock=Clock(), progress=k / 2)
            metrics = learn(run, stack, is_first=k == 0) | stack.episodes.metrics()
    assert len(settled) == 2
    assert all(x.device == META for x in metrics.values())
