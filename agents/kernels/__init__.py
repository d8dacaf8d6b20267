"""Fused updates on the CPU: whole updates of one learner as one compiled function.

The learners of a stack are independent, so that each is one call, on one of several threads; which
thread it is changes no bit. The modules beside this one import Numba; this one does so only when a
`Kernels` is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpd.agents.base import ClosedTerm, Metrics
from dpd.agents.nets import StackedNets
from dpd.agents.norm import ObsNorm
from dpd.agents.optim import StackedAdam

if TYPE_CHECKING:
    from dpd.agents.kernels.adam import AdamRow
    from dpd.agents.kernels.imitation import NetTable, TargetRow, Work
    from dpd.agents.offpolicy import OffPolicy, Sample
    from dpd.agents.ppo import PPO
    from dpd.agents.ppo_loss import Samples

ACTIVATION_KINDS = {"tanh": 0, "relu": 1, "elu": 2}
DIVERGENCE_KINDS = {"mse": 0, "kl_forward": 1, "kl_reverse": 2, "nll": 3, "huber": 4}
COMPILE_SECONDS = {False: 12, True: 22}
"""Time that the first compilation takes on one core, about; see the kinds of `warm_up`."""


def learner_arrays(x: Tensor) -> np.ndarray:
    """Return a tensor [N, ...] as an array that shares its memory, or a contiguous copy."""
    return x.detach().contiguous().numpy()


class Parts(NamedTuple):
    """The tensors of targets [N, K, ...] that a kernel reads."""

    obs: Tensor
    mean: Tensor
    log_std: Tensor
    sample: Tensor
    weight: Tensor


class ActingMemory(NamedTuple):
    """Everything about a stack that acting on a number of rows needs, made once."""

    owners: tuple[StackedNets, ObsNorm]  # kept alive: the memory is found by their ids
    nets: NetTable
    param: np.ndarray  # live, as mean and scale
    mean: np.ndarray
    scale: np.ndarray
    clip: np.floating[Any]
    tape: np.ndarray
    turned: np.ndarray


class Kernels:
    """Runs compiled updates of a stack's learners, side by side on threads.

    Raises ImportError if Numba cannot be imported.
    """

    def __init__(self, threads: int) -> None:
        from dpd.agents.kernels import acting, imitation, ppo

        self.threads = threads
        self._acting, self._imitation, self._ppo = acting, imitation, ppo
        self._acting_memory: dict[tuple[int, int, int], ActingMemory] = {}
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def _map(self, work: Callable[[int], Any], n: int) -> list[Any]:
        """Return the results of work(0) to work(n - 1)."""
        if self._pool is None or n == 1:
            return [work(i) for i in range(n)]
        return list(self._pool.map(work, range(n)))

    def act(
        self, nets: StackedNets, norm: ObsNorm, obs: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Return samples [N, B, A] at raw obs [N, B, O], or without noise the clipped means."""
        m = self._memory_to_act(nets, norm, obs.shape[1])
        act = obs.new_empty(*obs.shape[:2], nets.shapes["log_std"][1])
        x, z = learner_arrays(obs), learner_arrays(act[:, :0] if noise is None else noise)
        out = act.numpy()
        self._acting.act_rows(m.nets, m.param, x, m.mean, m.scale, m.clip, z, m.tape, m.turned, out)
        return act

    def output(self, nets: StackedNets, norm: ObsNorm, obs: Tensor) -> Tensor:
        """Return the actors' output [N, B, A] at raw obs [N, B, O]."""
        m = self._memory_to_act(nets, norm, obs.shape[1])
        act = obs.new_empty(*obs.shape[:2], nets.layers["actor"][-1][0].shape[2])
        x, out = learner_arrays(obs), act.numpy()
        self._acting.output_rows(m.nets, m.param, x, m.mean, m.scale, m.clip, m.tape, m.turned, out)
        return act

    def _memory_to_act(self, nets: StackedNets, norm: ObsNorm, rows: int) -> ActingMemory:
        key = id(nets), id(norm), rows
        if key not in self._acting_memory:
            table, length = net_table(nets, rows)
            param = nets.flat.detach().numpy()
            real = param.dtype
            self._acting_memory[key] = ActingMemory(
                owners=(nets, norm),
                nets=table,
                param=param,
                mean=norm.mean.numpy(),
                scale=norm.scale.numpy(),
                clip=real.type(norm.clip),
                tape=np.empty(length, real),
                turned=np.empty(param.shape[1], real),
            )
        return self._acting_memory[key]

    def ppo_epochs(
        self,
        ppo: PPO,
        data: Samples,
        order: Tensor,
        active: Sequence[bool],
        term: ClosedTerm | None,
        first: int,
    ) -> tuple[Metrics, Tensor]:
        """Run passes over the samples in `order` [N, epochs, S]; move only active learners.

        Returns the means of every step's metrics [N], and the ratios of the last pass [N, M, B].
        `first` counts the minibatches before this call, for a term with states of its own.
        """
        c, kernel = ppo.config, self._ppo
        weight = data.logp[:, :0] if data.weight is None else data.weight
        samples = kernel.SampleRow(*map(learner_arrays, (*data[:6], weight)))
        orders, ratios = learner_arrays(order), torch.empty_like(data.logp)
        into = ratios.numpy()
        options = kernel.LossOptions(
            minibatch=c.minibatch_size,
            norm_adv=c.norm_adv,
            clip=float(c.clip),
            value_clip=math.inf if c.value_clip is None else float(c.value_clip),
            value_coef=float(c.value_coef),
            entropy_coef=float(ppo.loss_config.entropy_coef),
            rl_coef=float(ppo.rl_coef),
        )
        nets, tape = net_table(ppo.nets, c.minibatch_size, data.obs.shape[2])
        rows = adam_rows(ppo.nets.flat, ppo.optimizer, c.max_grad_norm)
        terms = self._term_rows(ppo, term, first)

        def work(n: int) -> tuple[float, ...]:
            own = kernel.SampleRow(*(x[n] for x in samples))
            memory = work_memory(ppo.nets, nets, tape, c.minibatch_size)
            one = nets, options, rows[n], active[n], own, orders[n], terms[n], into[n], memory
            found: tuple[float, ...] = kernel.ppo_epochs(*one)
            return found

        means = torch.tensor(self._map(work, ppo.n_learners), dtype=ppo.dtype)
        policy, value, norm, distance = means.unbind(1)
        metrics = {"loss/policy": policy, "loss/value": value}
        metrics |= {} if term is None else {"distill/loss": distance}
        metrics["train/grad_norm"] = norm  # last, as on the torch path: logs keep the order
        return metrics, ratios.unflatten(1, (-1, c.minibatch_size))

    def replay_updates(
        self, agent: OffPolicy, sample: Sample, noise: Tensor, judges: Tensor
    ) -> list[Metrics]:
        """Run TD3's or SAC's updates on minibatches; see `replayed.run_updates`."""
        from dpd.agents.kernels.replayed import run_updates

        return run_updates(agent, sample, noise, judges, self._map)

    def imitate(
        self,
        nets: StackedNets,
        optimizer: StackedAdam,
        kind: str,
        targets: Sequence[Tensor],
        active: Tensor,
        max_grad_norm: float,
        coef: float,
    ) -> Tensor:
        """Take gradient steps on coef times the weighted divergence; return the mean loss [N].

        `targets` are the tensors of `Parts`; step i uses the i-th of equal parts, and moves the
        learners that `active` [steps, N] names.
        """
        parts = Parts(*targets)
        n, size = parts.weight.shape[0], parts.weight.shape[1] // len(active)
        table, tape = net_table(nets, size)
        rows = adam_rows(nets.flat, optimizer, max_grad_norm)
        given = self._target_rows(kind, parts)
        on = learner_arrays(active.T)

        def work(i: int) -> float:
            memory = work_memory(nets, table, tape, size)
            one = table, rows[i], given[i], float(coef), on[i], memory
            return float(self._imitation.imitation_steps(*one))

        return torch.tensor(self._map(work, n), dtype=nets.flat.dtype)

    def _target_rows(self, kind: str, parts: Parts) -> list[TargetRow]:
        arrays = [learner_arrays(x) for x in parts]
        code = DIVERGENCE_KINDS[kind]
        n = len(arrays[0])
        return [self._imitation.TargetRow(code, *(x[i] for x in arrays)) for i in range(n)]

    def _term_rows(self, ppo: PPO, term: ClosedTerm | None, first: int) -> list[Any]:
        kernel, n = self._ppo, ppo.n_learners
        if term is None:
            none = torch.empty(n, 0, 0, dtype=ppo.dtype)
            parts = Parts(none, none, none, none, torch.empty(n, 0, dtype=ppo.dtype))
            return [
                kernel.TermRow(kernel.NO_TERM, 0.0, t, 0) for t in self._target_rows("mse", parts)
            ]
        place = kernel.PROXIMAL if term.proximal else kernel.AT_SAMPLES
        place = place if term.obs is None else kernel.OWN_STATES
        obs = term.mean.new_empty(n, 0, 0) if term.obs is None else term.obs
        parts = Parts(obs, term.mean, term.log_std, term.sample, term.weight)
        coefs = term.coef.tolist() if isinstance(term.coef, Tensor) else [float(term.coef)] * n
        rows = zip(coefs, self._target_rows(term.kind, parts), strict=True)
        return [kernel.TermRow(place, coef, t, first) for coef, t in rows]

    def warm_up(
        self,
        say: Callable[[str], None],
        kinds: Collection[bool] = (False, True),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Compile everything, or read it from the cache; `say` one line before compiling.

        `kinds` has True for what learners with critics of actions need, and False for all others.
        """
        from dpd.agents.kernels.compiled import announced

        seconds = sum(COMPILE_SECONDS[kind] for kind in kinds)
        line = f"compiling kernels, once, about {seconds} s"
        with announced(lambda: say(line)):
            if False in kinds:
                self._compile_ppo(dtype)
            if True in kinds:
                self._compile_replayed(dtype)

    def _compile_ppo(self, dtype: torch.dtype) -> None:
        from dpd.agents.ppo import PPO
        from dpd.agents.ppo_config import PPOConfig
        from dpd.agents.ppo_loss import Samples

        config = PPOConfig(n_envs=1, n_steps=2, minibatch_size=2, epochs=1, hidden=(1,))
        ppo = PPO(config, 1, 1, [(0, 0)], dtype)
        matrix, vector = torch.zeros(1, 2, 1, dtype=dtype), torch.zeros(1, 2, dtype=dtype)
        data = Samples(matrix, matrix, vector, vector, vector, vector)
        targets = Parts(matrix, matrix, matrix, matrix, vector)
        moved = torch.ones(1, 1, dtype=torch.bool)
        self.act(ppo.nets, ppo.obs_norm, matrix)
        self.ppo_epochs(ppo, data, torch.tensor([[[0, 1]]]), [True], None, 0)
        self.imitate(ppo.nets, ppo.optimizer, "mse", targets, moved, 1.0, 1.0)

    def _compile_replayed(self, dtype: torch.dtype) -> None:
        from dpd.agents.offpolicy import Sample
        from dpd.agents.offpolicy_config import SACConfig
        from dpd.agents.replay import Transitions
        from dpd.agents.sac import SAC

        config = SACConfig(capacity=10_000, minibatch_size=2, hidden=(1,))
        sac = SAC(config, 1, 1, [(0, 0)], dtype)
        vector = torch.zeros(1, 2, dtype=dtype)
        sample = Transitions(vector.new_zeros(1, 2, 2), vector.unsqueeze(2), vector, vector)
        self.output(sac.nets, sac.obs_norm, sample.obs_act[..., :1].contiguous())
        drawn = vector.new_zeros(1, 1, 2, 2, 1), sac._draw_judges(1)
        self.replay_updates(sac, Sample(sample, sample, sample), *drawn)


def adam_rows(param: Tensor, optimizer: StackedAdam, max_grad_norm: float) -> list[AdamRow]:
    """Return every row of param [N, D] and of its optimizer; infinite norms are not bounded."""
    from dpd.agents.kernels.adam import AdamRow

    state = param, optimizer.exp_avg, optimizer.exp_avg_sq, optimizer.steps.unsqueeze(1)
    flat, avg, avg_sq, steps = (x.detach().numpy() for x in state)  # live, never a copy
    beta1, beta2, eps = *map(float, optimizer.betas), float(optimizer.eps)
    fixed = beta1, beta2, eps, float(max_grad_norm)
    return [
        AdamRow(flat[n], avg[n], avg_sq[n], steps[n], float(lr), *fixed)
        for n, lr in enumerate(optimizer.lr)
    ]


def net_table(nets: StackedNets, n: int, seen: int = 0) -> tuple[NetTable, int]:
    """Return the positions of `actor`, `critic` and `log_std`, and the length of a tape.

    The tape is for n rows, or for the rows of a block if there are more. If `seen`, the width of
    the observations, exceeds the actor's inputs, the rest are the critic's; else both read the
    same.
    """
    from dpd.agents.kernels.imitation import NetTable
    from dpd.agents.kernels.nets import ROWS_AT_ONCE

    n = min(n, ROWS_AT_ONCE)
    own = nets.shapes["actor.0.weight"][0]
    apart = n * own if seen > own else 0
    inputs = n * max(seen, own)
    actor, tape, turned = layer_table(nets, "actor", n, inputs, 0)
    critic, tape, _ = layer_table(nets, "critic", n, tape, turned, apart)
    kind = ACTIVATION_KINDS[nets.activation]
    return NetTable(actor, critic, parameter_positions(nets).get("log_std", -1), kind), tape


def parameter_positions(nets: StackedNets) -> dict[str, int]:
    """Return where each parameter of a learner begins."""
    sizes = [math.prod(shape) for shape in nets.shapes.values()]
    return dict(zip(nets.shapes, accumulate(sizes, initial=0), strict=False))


def layer_table(
    nets: StackedNets, prefix: str, n: int, tape: int, turned: int, source: int = 0
) -> tuple[np.ndarray, int, int]:
    """Return the positions of an MLP for n rows, and the next free ones on the tape and turned.

    `source` is where its input begins on the tape.
    """
    at = parameter_positions(nets)
    table = np.zeros((len(nets.layers.get(prefix, ())), 7), np.int64)
    for i in range(len(table)):
        weight = f"{prefix}.{i}.weight"
        n_in, n_out = nets.shapes[weight]
        table[i] = at[weight], at[f"{prefix}.{i}.bias"], n_in, n_out, source, tape, turned
        source, tape, turned = tape, tape + n * n_out, turned + n_in * n_out
    return table, tape, turned


def work_memory(nets: StackedNets, table: NetTable, tape: int, n: int) -> Work:
    """Return memory for one learner's passes over n rows."""
    from dpd.agents.kernels.imitation import Work
    from dpd.agents.kernels.nets import FEW_OUTPUTS, N_IN, N_OUT, ROWS_AT_ONCE

    size, real = nets.flat.shape[1], learner_arrays(nets.flat).dtype
    layers = np.concatenate([table.actor, table.critic])
    widest = int(layers[:, [N_IN, N_OUT]].max()) * max(min(n, ROWS_AT_ONCE), FEW_OUTPUTS)
    # twice: the gradient of a narrow layer needs two matrices
    lengths = size, tape, size, 2 * widest, 2 * widest, 2 * widest, n
    return Work(*(np.empty(length, real) for length in lengths))
