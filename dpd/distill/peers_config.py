"""Settings of dual policy distillation between peers; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from dpd.agents.config import LearnerConfig
from dpd.agents.offpolicy_config import OffPolicyConfig, TD3Config
from dpd.agents.ppo_config import PPOConfig
from dpd.distill.config import OF_MEANS, Divergence, MethodConfig

WHERE_IT_MATTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "steps": ("dose", ("step", "shared")),
    "batch_size": ("dose", ("step", "shared")),
    "max_grad_norm": ("dose", ("step", "shared")),
    "lr": ("dose", ("step",)),
    "lcb_k": ("ruler", ("lcb",)),
    "alpha": ("gate", ("soft",)),
    "scale": ("gate", ("soft",)),
    "max_weight": ("gate", ("soft",)),
    "weight_clip": ("gate", ("soft",)),
    "match_dose": ("gate", ("uniform",)),
    "target_kl": ("dose", ("loss",)),
    "coef_unit": ("dose", ("loss",)),
    "target": ("divergence", ("mse", "huber")),
    "peer_share": ("states", ("mixed",)),
}
"""Setting -> the setting that must have one of these values, or the first has no effect."""

OF_WHAT_WAS_PLAYED = ("return", "advantage", "common")
"""Rulers that read the peer's rollout of the iteration, not only answers about its states."""


@dataclass(frozen=True, kw_only=True)
class IndependentConfig(MethodConfig):
    """No distillation: peers train side by side, and their distance is logged."""


@dataclass(frozen=True, kw_only=True)
class DPDConfig(MethodConfig):
    """Dual policy distillation (Lai et al. 2020), for two peers or more.

    PPO's peers have the preset `modern` by default. All others, and --preset paper, have the values
    of the paper, for which None stands too.
    """

    ruler: Literal[
        "value", "centred", "return", "advantage", "common", "action", "lcb", "critics"
    ] = "value"
    """Measure of the peer's advantage at a state. `value`: difference of the two value functions
    (the paper); `centred`: the same less its mean over the states, since most of it may be an
    offset between two critics. `return`, for PPO: the return that the peer got from the state,
    minus the learner's value; `advantage`: that of what the peer played, by the learner's own value
    function alone; `common`: the same by the mean of all peers' value functions. For learners with
    action critics: `action`, the mean critic's value of the peer's action minus that of the
    learner's; `lcb`, the same minus the critics' disagreement; `critics`, the peer's critic minus
    the learner's, both at the peer's action (2020 code for DDPG)."""
    lcb_k: float = 1.0
    """Standard deviations over critics that `lcb` subtracts from their mean."""
    gate: Literal["soft", "hard", "uniform"] = "soft"
    """Weight of a state: softmax of the advantage (the paper's exponential, mean 1), 1 where the
    peer is ahead, or 1 everywhere."""
    alpha: float = 1.0
    """Sharpness of the soft gate, per unit of `scale` (the paper: 0.1 to 10, on raw advantages). A
    sharp gate imitates few states: without `max_weight`, the effective sample size of 2,048 states
    is about 1,250 at 1, 50 at 3 and 2 at 10. TensorBoard shows it as a share, distill/ess."""
    scale: Literal["rms", "reward"] = "rms"
    """Unit of the advantage in the soft gate: its running root mean square, or the learner's
    running standard deviation of returns (which scales the 2020 code's value functions)."""
    weight_clip: tuple[float, float] | None = None
    """Bounds on the soft gate's exponential before normalization, instead of `max_weight` (2020
    code: 0.01 100)."""
    max_weight: float | None = 100.0
    """Largest weight of a state in the soft gate, whose mean weight is 1; the excess goes to the
    states with the next largest weights. 100 keeps the effective sample size above 1 % of the
    states. None: no bound (the paper)."""
    match_dose: bool = False
    """Give the uniform gate the mean weight that the hard gate would have."""
    control: Literal["none", "shuffled", "reversed", "cancelled"] = "none"
    """Control experiment: permute the weights over the states, flip the sign of the advantage, or
    multiply every distance by every weight, so that the weights cancel (2020 code for DDPG)."""
    divergence: Divergence = "mse"
    """Distance to the target: squared error of the mean actions (the paper), their Huber loss (half
    the squared error up to 1, linear from there), KL(target || student), KL(student || target), or
    -log likelihood of the target's samples."""
    target: Literal["mode", "sample"] = "mode"
    """Action that `mse` and `huber` compare with: the target's mean action, or a sample of it (2020
    code)."""
    states: Literal["peer", "own", "mixed", "samples"] = "peer"
    """Source of the states: a random other peer (the paper), the learner itself, or both.
    `samples`, for PPO and the dose `loss`: the very samples of each minibatch, with
    --share-experience the peers' too, so that the term costs no pass of its own through the
    networks."""
    peer_share: float = 0.5
    """Share of the peer's states in `mixed`."""
    memory: int | None = None
    """Number of most recent states per learner to draw from. 0: PPO's current iteration, or the
    whole replay. None: PPO's current iteration, or the most recent 1,000 states (the paper). With a
    replay and the dose `loss`, the learner's own states are those of its minibatch instead."""
    dose: Literal["step", "shared", "loss"] = "step"
    """Separate gradient steps with their own Adam (the paper), separate steps through the learner's
    Adam (2020 code), or a term in the learner's loss. With a replay, the term has new states,
    targets and weights in every update, as many states as the learner's minibatch."""
    lr: float | None = None
    """Learning rate of the dose `step`. None: 1e-5 for PPO, else 1e-4 (the paper)."""
    steps: int | None = None
    """Gradient steps per iteration. None: 40 for PPO, which with 256 of 2,048 states each are five
    passes over the peer's states next to PPO's ten over its own (the paper gives no number); else
    one for each update of the learner (the paper)."""
    batch_size: int | None = None
    """States per gradient step. None: 256 for PPO, else 64 (the paper)."""
    coef: float = 1.0
    """Weight of the distillation loss, for the doses that use the learner's Adam."""
    coef_unit: Literal["one", "value"] = "one"
    """Unit of `coef` in the dose `loss`, with a replay: 1, or the mean size of the values that the
    learner's policy ascends in the minibatch, so that both parts of its loss stay on one scale
    (after the normaliser of TD3+BC, Fujimoto and Gu 2021)."""
    target_kl: float | None = None
    """KL(learner || peer) in nats at which a leash holds PPO's learners, by changing each one's
    `coef` in every iteration that begins too far from it: times KL / target_kl, at least 2/3 and at
    most 3, within 0.1 to 100 times `coef` (after Schulman et al. 2017, Sec. 4). At 0.35, about half
    of a peer's samples count with --share-experience. None: `coef` is constant."""
    max_grad_norm: float | None = None
    """Bound on the gradient norm of a distillation step. None: 0.5 for PPO, else no bound (2020
    code)."""
    every: int = 1
    """Distil in every n-th iteration."""
    warmup: float = 0.0
    """Share of the run before distillation begins."""
    schedule: Literal["constant", "linear"] = "constant"
    """Dose over the rest of the run: constant, or falling linearly to zero."""
    students: tuple[int, ...] | None = None
    """Numbers of the peers that imitate; None: all. One of two peers makes it one-way."""
    leader: Literal["none", "return"] = "none"
    """Peers to imitate at all. `none`: all, as ruler and gate say. `return`: only those that are
    ahead of the learner in return, so that the better half leads. A peer begins to lead when the
    mean of its latest training episodes (train/return) is ahead by a standard error, and stops when
    it is behind; distill/student is 1 in iterations in which a learner imitates."""

    def __post_init__(self) -> None:
        self._require("be positive", "lr", "steps", "batch_size", "max_grad_norm", "every")
        self._require("be positive", "alpha", "coef", "target_kl")
        self._require("not be negative", "memory", "lcb_k")
        self._require("lie in [0, 1]", "warmup", "peer_share")
        self._refuse_idle_settings()
        for setting, (name, values) in WHERE_IT_MATTERS.items():
            changed = getattr(self, setting) != getattr(type(self), setting)
            if changed and getattr(self, name) not in values:
                raise ValueError(
                    f"distill.{setting} does nothing with {name} {getattr(self, name)}; it is for "
                    + " or ".join(f"--distill.{name} {value}" for value in values)
                )

    def _refuse_idle_settings(self) -> None:
        """Raise ValueError for a combination in which a setting would have no effect."""
        clip, bound = self.weight_clip, self.max_weight
        if self.dose == "step" and self.coef != 1:
            raise ValueError(
                "distill.coef under an Adam of its own cancels; set distill.lr, or "
                "--distill.dose loss"
            )
        if self.target_kl is not None and not self.divergence.startswith("kl"):
            raise ValueError(
                f"distill.target_kl holds a KL, not {self.divergence}; give --distill.divergence "
                "kl_forward or kl_reverse"
            )
        if self.states == "samples" and (self.dose != "loss" or self.memory is not None):
            raise ValueError(
                "distill.states samples are those of the learner's loss: give --distill.dose loss, "
                "and leave out distill.memory"
            )
        if self.ruler in OF_WHAT_WAS_PLAYED and (self.states != "peer" or self.memory):
            raise ValueError(
                f"distill.ruler {self.ruler} needs the peer's own states of this iteration: "
                "--distill.states peer --distill.memory 0"
            )
        reverses_dose = self.match_dose and self.control == "reversed"
        if self.gate == "uniform" and self.control != "none" and not reverses_dose:
            raise ValueError("distill.control does nothing to a uniform gate; choose soft or hard")
        if clip is not None and not 0 < clip[0] < clip[1]:
            raise ValueError("distill.weight_clip needs two positive numbers, the lower one first")
        if bound is not None and bound <= 1:
            raise ValueError("distill.max_weight must be more than 1, the mean of all weights")
        if clip is not None and bound not in (None, type(self).max_weight):
            raise ValueError(
                "distill.max_weight does nothing beside weight_clip, which takes its place"
            )

    def refuse_unlike_discounts(self, gammas: Sequence[float]) -> None:
        """Raise ValueError if the ruler would compare values of peers with different discounts."""
        if self.ruler not in ("action", "lcb", "advantage") and len(set(gammas)) > 1:
            raise ValueError(
                f"distill.ruler {self.ruler} compares values of peers whose gamma is unlike; give "
                "all peers the same, PPO --distill.ruler advantage, or learners with a replay "
                "--distill.ruler action or lcb"
            )

    def refuse_unfit(self, *learners: Any) -> None:
        """Raise ValueError if learners of these settings lack what the method needs."""
        super().refuse_unfit(*learners)
        for each in learners:
            self.refuse_unlike_discounts(each.peer_gamma)
        replays = [each for each in learners if isinstance(each, OffPolicyConfig)]
        no_spread = "needs a spread, which policies of TD3 and DDPG do not have: give --distill."
        if not replays and self.ruler in ("action", "lcb", "critics"):
            raise ValueError(
                f"distill.ruler {self.ruler} needs critics of actions, which PPO does not have: "
                "give --distill.ruler value, centred, return, advantage or common"
            )
        if replays and self.ruler in OF_WHAT_WAS_PLAYED:
            raise ValueError(
                f"distill.ruler {self.ruler} needs the returns of PPO; give --distill.ruler value, "
                "centred, action, lcb or critics"
            )
        if replays and self.target_kl is not None:
            raise ValueError(
                "distill.target_kl is for PPO, whose KL is measured once per iteration; give "
                "--distill.coef"
            )
        self._refuse_unknown_samples(learners)
        if self.coef_unit == "value" and len(replays) < len(learners):
            raise ValueError(
                "distill.coef_unit value is for learners with a replay, whose policies ascend "
                "values; leave it out"
            )
        if any(isinstance(each, TD3Config) for each in learners):
            if self.divergence not in OF_MEANS:
                raise ValueError(
                    f"distill.divergence {self.divergence} {no_spread}divergence mse or huber"
                )
            if self.target == "sample":
                raise ValueError(f"distill.target sample {no_spread}target mode")
        if (self.memory or 0) > min((each.capacity for each in replays), default=inf):
            raise ValueError("distill.memory is more than the replay's --capacity; 0 is all of it")
        own_in_loss = (self.states, self.dose) == ("own", "loss")
        if own_in_loss and self.memory is not None and len(replays) == len(learners):
            raise ValueError(
                "distill.memory does nothing here: with a replay, own states in the loss are those "
                "of the learner's minibatch; leave it out, or give --distill.states mixed"
            )
        if len(learners) > 1:
            self._refuse_unlike(learners)

    def _refuse_unknown_samples(self, learners: Sequence[LearnerConfig]) -> None:
        """Raise ValueError if the samples of the loss are not those that the peers just took."""
        if self.states != "samples":
            return
        if any(isinstance(each, OffPolicyConfig) for each in learners):
            raise ValueError(
                "distill.states samples is for PPO; with a replay, --distill.states own in the "
                "loss are the states of the minibatch"
            )
        if any(isinstance(each, PPOConfig) and each.reuse_iterations > 1 for each in learners):
            raise ValueError(
                "distill.states samples knows no samples of past iterations: leave out "
                "reuse_iterations, or give --distill.states own"
            )

    def _refuse_unlike(self, learners: Sequence[LearnerConfig]) -> None:
        """Raise ValueError if peers differ too much for the ruler or the divergence."""
        self.refuse_unlike_discounts([each.gamma for each in learners])
        several_algorithms = len({type(each) for each in learners}) > 1
        if self.ruler in ("value", "centred") and several_algorithms:
            raise ValueError(
                f"distill.ruler {self.ruler} compares value functions of unlike algorithms, which "
                "estimate different quantities: give --distill.ruler action"
            )
        if self.ruler in ("advantage", "common"):
            raise ValueError(
                f"distill.ruler {self.ruler} judges rollouts of peers that collect at once, which "
                "unlike peers do not: give --distill.ruler return, value or centred"
            )
        if self.ruler == "critics":
            raise ValueError(
                "distill.ruler critics compares critics of unlike peers: give --distill.ruler "
                "action or lcb"
            )
        if len({each.squashed for each in learners}) > 1 and self.divergence not in OF_MEANS:
            raise ValueError(
                f"distill.divergence {self.divergence} has no meaning between policies that squash "
                "their actions and that do not: give --distill.divergence mse or huber"
            )
        if self.target == "sample" and several_algorithms:
            raise ValueError(
                "distill.target sample is for peers of one algorithm; give --distill.target mode"
            )
