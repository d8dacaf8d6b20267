"""Adam and SGD over stacked learners."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpd.agents.base import CPU, Stateful


def clip_grad_norm(grad: Tensor, max_norm: float) -> Tensor:
    """Scale each learner's gradient [N, D] in place to at most max_norm; return the norms [N]."""
    norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
    grad.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))  # the 1e-6 of torch's clip_grad_norm_
    return norm.squeeze(1)


def require_rates(param: Tensor, lr: Sequence[float]) -> int:
    """Return the number of learners. Raises ValueError unless there is one rate per learner."""
    if len(lr) != param.shape[0]:
        raise ValueError(f"{len(lr)} learning rates for {param.shape[0]} learners")
    return len(lr)


class StackedAdam(Stateful):
    """Adam (Kingma & Ba 2015) on one leaf [N, D] with a learning rate and a step count per row.

    A row whose `active` is false stays unchanged: parameters, moments and step count. Rows of
    equal learning rate share one call of the fused kernel of `torch.optim.Adam(fused=True)`,
    without the overhead of that class (26 instead of 97 us for 2 rows). On a GPU the rates are
    read from device memory, so that a recorded step uses the current ones. The caller stores the
    rates: they are not part of the state.
    """

    STATE = ("exp_avg", "exp_avg_sq", "steps")

    def __init__(
        self,
        param: Tensor,
        lr: Sequence[float],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        n = require_rates(param, lr)
        self.betas, self.eps = betas, eps
        self._rates = None if param.device == CPU else torch.zeros(n, device=param.device)
        self.lr = list(lr)
        self.exp_avg = torch.zeros_like(param, requires_grad=False)
        self.exp_avg_sq = torch.zeros_like(self.exp_avg)
        self.steps = torch.zeros(n, device=param.device)
        # Views: the state is three tensors, but the kernel takes lists of rows.
        self._param = list(param.detach().unbind(0))
        self._avg = list(self.exp_avg.unbind(0))
        self._avg_sq = list(self.exp_avg_sq.unbind(0))
        self._steps = list(self.steps.unbind(0))

    @property
    def lr(self) -> list[float]:
        """Each row's learning rate."""
        return self._lr

    @lr.setter
    def lr(self, rates: Sequence[float]) -> None:
        self._lr = list(rates)
        if self._rates is not None:
            self._rates.copy_(torch.tensor(self._lr), non_blocking=True)  # or the host waits

    def restart(self) -> None:
        """Forget all moments and step counts, in place."""
        for x in (self.exp_avg, self.exp_avg_sq, self.steps):
            x.zero_()

    @torch.no_grad()
    def step(self, grad: Tensor, active: Sequence[bool] | Tensor | None = None) -> None:
        """Update every active row by its gradient in grad [N, D].

        If `active` is a tensor of booleans [N], it is never read by the host.
        """
        grads = grad.unbind(0)
        if isinstance(active, Tensor):
            self.steps += active
            for i, off in enumerate((~active).float()):
                self._move([i], grads, off)
            return
        rows = range(len(self.lr)) if active is None else [i for i, on in enumerate(active) if on]
        by_lr: dict[float, list[int]] = {}
        for i in rows:
            by_lr.setdefault(self.lr[i], []).append(i)
        for ids in by_lr.values():
            torch._foreach_add_([self._steps[i] for i in ids], 1)
            self._move(ids, grads)

    def _move(self, ids: Sequence[int], grads: Sequence[Tensor], off: Tensor | None = None) -> None:
        """Update rows of equal learning rate, after their steps are counted; skip if `off` is 1."""
        torch._fused_adam_(
            [self._param[i] for i in ids],
            [grads[i] for i in ids],
            [self._avg[i] for i in ids],
            [self._avg_sq[i] for i in ids],
            [],
            [self._steps[i] for i in ids],
            lr=self._lr[ids[0]] if self._rates is None else self._rates[ids[0]],
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
            found_inf=off,  # the switch by which a gradient scaler skips a step
        )


class StackedSGD:
    """SGD with Nesterov momentum on one leaf [N, D] with a learning rate per row.

    Each row is updated as by `torch.optim.SGD(nesterov=True)`.
    """

    def __init__(self, param: Tensor, lr: Sequence[float], momentum: float = 0.9) -> None:
        require_rates(param, lr)
        self.lr, self.momentum = list(lr), momentum
        self.velocity = torch.zeros_like(param, requires_grad=False)
        self._param = param.detach()

    @torch.no_grad()
    def step(self, grad: Tensor, active: Sequence[bool] | Tensor | None = None) -> None:
        """Update every active row by its gradient in grad [N, D]."""
        on = torch.as_tensor([True] * len(self.lr) if active is None else active).unsqueeze(1)
        velocity = self.momentum * self.velocity + grad
        self.velocity.copy_(torch.where(on, velocity, self.velocity))
        rate = torch.tensor(self.lr, dtype=grad.dtype).unsqueeze(1) * on
        self._param -= rate * (grad + self.momentum * velocity)


StackedOptimizer = StackedAdam | StackedSGD
