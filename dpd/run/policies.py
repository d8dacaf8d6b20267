"""Policy files of a run: the last and the best policy of every learner."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dpd import __version__
from dpd.agents.base import State, put_back
from dpd.agents.config import View
from dpd.config import StackConfig, TrainConfig
from dpd.envs.base import EnvSpec
from dpd.log.naming import learner_name, peer_names, policy_name
from dpd.policies import policyfile
from dpd.policies.memory import MemoryMeta
from dpd.policies.metadata import PolicyMeta


class PolicySaver:
    """Write every learner's last and best policy, with their provenance."""

    def __init__(
        self,
        run_dir: Path,
        config: TrainConfig,
        spec: EnvSpec,
        export: Callable[[int], tuple[StackConfig, Mapping[str, Tensor]]],
        memory: Callable[[int], MemoryMeta | None] = lambda n: None,
        view: Callable[[int], View | None] = lambda n: None,
    ) -> None:
        self.dir, self.names = run_dir / "policies", peer_names(config)
        self.config, self.spec, self.export, self.memory = config, spec, export, memory
        self.view = view
        seeds = range(config.run.seed, config.run.seed + config.run.seeds)
        self.ids = [(seed, peer) for seed in seeds for peer in range(config.run.peers)]
        self.best = torch.full((len(self.ids),), -torch.inf, dtype=torch.float64)
        settings = json.dumps(config.as_json(), sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()
        self.origin = {
            "config_sha256": digest,
            "dpd": __version__,
            "torch": torch.__version__,
            "git": git_commit(),
            "method": config.method,
        }

    def state(self) -> State:
        """Return the best evaluations so far."""
        return {"best": self.best}

    def load_state(self, state: State) -> None:
        """Restore the best evaluations."""
        put_back(self.state(), state)

    def path(self, n: int, is_best: bool = False, steps: int | None = None) -> Path:
        """Return the file of learner n's last policy, of its best one, or of the one at `steps`."""
        name = policy_name(learner_name(self.ids[n][0], self.names[self.ids[n][1]]), is_best, steps)
        return (self.dir if steps is None else self.dir / "history") / f"{name}.safetensors"

    def save(self, steps: int, returns: Tensor) -> None:
        """Write the last policies, and a best one if its evaluation, returns [N], is a record."""
        for n, value in enumerate(returns.tolist()):
            self._write(n, self.path(n), steps, value)
            if self.config.run.keep_checkpoints:
                self._write(n, self.path(n, steps=steps), steps, value)
            if value > self.best[n]:
                self.best[n] = value
                self._write(n, self.path(n, is_best=True), steps, value)

    def save_last(self, steps: int) -> None:
        """Write the current policies, without an evaluation."""
        for n in range(len(self.ids)):
            self._write(n, self.path(n), steps, None)

    def _write(self, n: int, path: Path, steps: int, value: float | None) -> None:
        run, (seed, peer) = self.config.run, self.ids[n]
        stack, tensors = self.export(n)
        algo = stack.algo
        meta = PolicyMeta(
            algo=stack.name,
            env_id=run.env,
            activation=algo.activation,
            squashed=algo.squashed,
            tanh_mean=algo.tanh_mean,
            state_std=algo.state_std,
            norm_obs=algo.norm_obs,
            obs_dim=self.spec.obs_dim,
            act_dim=self.spec.act_dim,
            obs_shape=self.spec.obs_shape,
            act_shape=self.spec.act_shape,
            hidden=stack.hidden_of(peer),
            env_kwargs=run.parsed_env_kwargs(),
            memory=self.memory(n),
            view=self.view(n),
            encoder=algo.encoder_layers,
            provenance=self.origin
            | {"seed": seed, "peer": peer, "steps": steps, "eval_return": value},
        )
        policyfile.save(path, dict(tensors) | policyfile.bounds(self.spec), meta)


def git_commit() -> str | None:
    """Return the commit of the working directory; None outside a repository."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
