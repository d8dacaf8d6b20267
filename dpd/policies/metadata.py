"""The description inside a policy file, and the checks on one that comes from elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from dpd.agents.config import Encoder, View
from dpd.agents.encoders import encoder_shapes
from dpd.agents.nets import ACTIVATIONS, Shapes, mlp_shapes
from dpd.agents.norm import CLIP
from dpd.policies.memory import MAX_SIZE, MIN_TAU, QUERIES, MemoryMeta, memory_shapes

FORMAT = 1
HYBRID_KEY = "dpd hybrid"
"""The key of a hybrid's description in the header of its file."""
# Far beyond any policy of this suite: larger ones are rejected before they cost memory or time.
MAX_LAYERS = 64
MAX_WIDTH = 2**24
MAX_AXES = 32  # of an observation or an action
MAX_DEPTH = 16  # of nested lists and objects in the description
MIN_CLIP, MAX_CLIP = math.ulp(0.0), torch.finfo(torch.float32).max  # above 0, as float32
DEFAULTS: dict[str, Any] = {
    "tanh_mean": False,
    "state_std": False,
    "memory": None,
    "obs_shape": None,
    "act_shape": None,
    "view": None,
    "encoder": None,
}
"""Fields that the first files of this format lack, and their values there."""


class NotAPolicy(ValueError):
    """The path holds no policy that this version can read; the message says why."""


@dataclass(frozen=True, kw_only=True)
class PolicyMeta:
    """The description of a policy, stored in its file next to the tensors.

    Three fields tell how the actor's output u becomes the distribution `Policy.dist`. For PPO all
    three are false: N(u, std). TD3 and DDPG set `tanh_mean`: N(tanh(u), std). SAC sets `squashed`
    and `state_std`: tanh of N(u, std(obs)). A file with `squashed` and `tanh_mean` is rejected.
    """

    algo: str
    env_id: str
    activation: str
    squashed: bool
    """The action is the tanh of the Gaussian's sample, as in `DiagGaussian`."""
    tanh_mean: bool = False
    """The Gaussian's mean is the tanh of the actor's output; noise is added after the tanh."""
    state_std: bool = False
    """The log standard deviation is `log_std_head`, a second linear layer on the actor's last
    hidden features, clamped as in SAC; otherwise it is the constant `log_std`."""
    obs_dim: int
    act_dim: int
    hidden: tuple[int, ...]
    env_kwargs: dict[str, Any]
    provenance: dict[str, Any]
    """Steps, seed, peer, evaluation, configuration hash, versions, git commit."""
    norm_obs: bool = True
    """Normalise and clip observations; if false, use them unchanged."""
    clip_obs: float = CLIP
    """Normalised observations are clipped to plus and minus this."""
    memory: MemoryMeta | None = None
    """The memory whose answer is mixed into the action; left out of the file if there is none."""
    obs_shape: tuple[int, ...] | None = None
    """Shape of the environment's observations, obs_dim numbers in total. None for vectors, which
    leave it out of the file. The network always reads observations flattened in C order."""
    act_shape: tuple[int, ...] | None = None
    """Shape of the environment's actions, act_dim numbers in total, likewise."""
    view: View | None = None
    """The part of the observations that the policy sees; left out of the file if it is all."""
    encoder: Encoder | None = None
    """Layers before the MLP, for policies with a view; left out of the file if there are none."""
    format: int = FORMAT

    @property
    def full_obs_shape(self) -> tuple[int, ...]:
        """The shape of one observation of the environment."""
        return (self.obs_dim,) if self.obs_shape is None else self.obs_shape

    @property
    def in_dim(self) -> int:
        """The number of the network's inputs."""
        return self.obs_dim if self.view is None else self.view.dim

    @property
    def memory_dim(self) -> int:
        """S, the numbers that a recurrent policy keeps from step to step; 0: it keeps none."""
        return 0 if self.encoder is None else self.encoder.memory_dim

    @property
    def needs_episode(self) -> bool:
        """True if the policy needs more than the present observation."""
        return self.memory_dim > 0 or not (self.view is None or self.view.is_memoryless)

    @property
    def sees_all(self) -> bool:
        """True if nothing of the present observation is hidden from the policy."""
        view = self.view
        return view is None or (
            len(view.columns) == self.obs_dim and view.delay == 0 and not view.has_noise
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of an input: (O,), or (H, G) for a policy with a view.

        (F + S,) for a recurrent policy: the flattened frames, and the memory behind them.
        """
        view = self.view
        if view is not None and self.memory_dim:
            return (view.dim + self.memory_dim,)
        return (self.obs_dim,) if view is None else (view.history, view.frame_dim)

    @property
    def frame_dim(self) -> int:
        """The number of inputs of one step, which the normaliser knows."""
        return self.obs_dim if self.view is None else self.view.frame_dim

    @property
    def full_act_shape(self) -> tuple[int, ...]:
        """The shape of one action of the environment."""
        return (self.act_dim,) if self.act_shape is None else self.act_shape


def shapes(meta: PolicyMeta) -> Shapes:
    """Return the names and shapes of the tensors in a policy file with this description."""
    if meta.state_std:
        std = mlp_shapes("log_std_head", [n_features(meta), meta.act_dim])
    else:
        std = {"log_std": (1, meta.act_dim)}
    return {
        "obs_mean": (1, meta.frame_dim),
        "obs_scale": (1, meta.frame_dim),
        "obs_count": (1, 1),  # samples behind mean and scale
        **std,
        "act_low": (meta.act_dim,),
        "act_high": (meta.act_dim,),
        **layer_shapes(meta),
        **mlp_shapes("actor", [mlp_inputs(meta), *meta.hidden, meta.act_dim]),
        **memory_shapes(meta.memory, n_features(meta), meta.act_dim),
    }


def layer_shapes(meta: PolicyMeta) -> Shapes:
    """Return the names and shapes of the layers before the MLP; empty if there are none."""
    if meta.encoder is None or meta.view is None:
        return {}
    return encoder_shapes(meta.encoder, meta.view.frame_dim, meta.view.history)


def n_features(meta: PolicyMeta) -> int:
    """Return the width of the last hidden layer, or of the input if there is none."""
    return [mlp_inputs(meta), *meta.hidden][-1]


def mlp_inputs(meta: PolicyMeta) -> int:
    """Return the number of inputs of the first layer of the MLP."""
    return meta.in_dim if meta.encoder is None else meta.encoder.size


def to_json(meta: PolicyMeta) -> str:
    """Return the description as text for `read_meta`."""
    values = asdict(meta)
    for name in ("memory", "obs_shape", "act_shape", "view", "encoder"):
        if values[name] is None:
            del values[name]  # so that older versions can read the file
    return json.dumps(values)


def read_meta(path: Path, text: str | None) -> PolicyMeta:
    """Parse a description. Raises NotAPolicy with the path and the reason if it is invalid."""
    if text is None:
        raise NotAPolicy(f"{path} is a safetensors file, but not a policy of dpd")
    try:
        values = json.loads(text)
        if not isinstance(values, dict) or is_deeper(values, MAX_DEPTH):
            raise ValueError("not a plain JSON object")
        version = values.get("format")
        if type(version) is not int or version != FORMAT:
            raise NotAPolicy(
                f"{path} has policy format {version!r:.40}; this version reads {FORMAT}"
            )
        values = DEFAULTS | values
        _check_values(values)
    except NotAPolicy:
        raise
    except (ValueError, RecursionError) as error:
        raise NotAPolicy(f"{path} is not a policy file: bad description ({error})") from error
    if values["activation"] not in ACTIVATIONS:
        raise NotAPolicy(f"{path} uses the unknown activation {values['activation']!r:.40}")
    for name in ("hidden", "obs_shape", "act_shape"):
        if values[name] is not None:
            values[name] = tuple(values[name])
    if values["memory"] is not None:
        values["memory"] = MemoryMeta(**values["memory"])
    if values["view"] is not None:
        tuples = {k: tuple(v) for k, v in values["view"].items() if isinstance(v, list)}
        values["view"] = View(**values["view"] | tuples)
    if values["encoder"] is not None:
        values["encoder"] = Encoder(**values["encoder"])
    return PolicyMeta(**values)


def is_deeper(value: Any, depth: int) -> bool:
    """Return True if lists and objects are nested more than `depth` times."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(is_deeper(v, depth - 1) for v in inner)


def _check_values(values: dict[str, Any]) -> None:
    """Raise ValueError unless a description is complete, and valid as a whole."""
    _check_fields(values, PolicyMeta)
    for part in ("obs", "act"):
        shape = values[f"{part}_shape"]
        if shape is not None and math.prod(shape) != values[f"{part}_dim"]:
            raise ValueError(f"{part}_shape is {shape!r:.40}")
    if values["squashed"] and values["tanh_mean"]:
        raise ValueError("squashed and tanh_mean exclude each other")
    if values["view"] is not None:
        _check_view(values["view"], values)
    if values["encoder"] is not None:
        _check_fields(values["encoder"], Encoder, "encoder.")
        if values["view"] is None or values["memory"] is not None:
            raise ValueError("an encoder needs a view, and no memory beside it")
    if (memory := values["memory"]) is None:
        return
    if values["squashed"]:
        # a memory holds actions after the tanh, which can't be mixed with a mean before it
        raise ValueError("squashed and memory exclude each other")
    _check_fields(memory, MemoryMeta, "memory.")
    if memory["k"] > memory["entries"]:
        raise ValueError(f"memory.k is {memory['k']}, of {memory['entries']} entries")
    if memory["query"] == "obs" and values["view"] is None and memory["dim"] != values["obs_dim"]:
        raise ValueError(f"memory.dim is {memory['dim']}, not obs_dim")


def _check_view(view: dict[str, Any], values: dict[str, Any]) -> None:
    """Raise ValueError unless the description of a view is complete, and fits the policy's."""
    _check_fields(view, View, "view.")
    for name in ("obs_dim", "act_dim"):
        if view[name] != values[name]:
            raise ValueError(f"view.{name} is {view[name]}, not {values[name]}")
    columns = view["columns"]
    if not columns or columns[-1] >= view["obs_dim"] or sorted(set(columns)) != columns:
        raise ValueError("view.columns are no columns of an observation in rising order")
    if len(view["noise"]) not in (0, len(columns)):
        raise ValueError("view.noise has another length than view.columns")
    if (len(columns) + view["act_dim"]) * view["history"] > MAX_WIDTH:
        raise ValueError(f"view.history is {view['history']}, which is too many inputs")


def _check_fields(values: dict[str, Any], kind: type, prefix: str = "") -> None:
    """Raise ValueError unless the values are those of all fields of a dataclass, and in CHECKS."""
    names = {f.name for f in fields(kind)}
    if values.keys() != names:
        odd = ", ".join(f"{prefix}{name:.40}" for name in sorted(values.keys() ^ names)[:5])
        raise ValueError(f"missing or unknown: {odd}")
    for name, is_valid in CHECKS[kind].items():
        if not is_valid(values[name]):
            raise ValueError(f"{prefix}{name} is {values[name]!r:.40}")


Check = Callable[[Any], bool]


def _is_a(kind: type) -> Check:
    return lambda value: isinstance(value, kind)


def _within(low: float, high: float, *kinds: type) -> Check:
    # `type`, because isinstance would accept a bool as an int; NaN fails the comparison
    return lambda value: type(value) in kinds and low <= value <= high


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()  # it is printed in messages


def _is_sizes(n: int) -> Check:
    is_size = _within(1, MAX_WIDTH, int)
    return lambda value: isinstance(value, list) and len(value) <= n and all(map(is_size, value))


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _all(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


CHECKS: dict[type, dict[str, Check]] = {
    PolicyMeta: {
        **dict.fromkeys(("algo", "env_id", "activation"), _is_text),
        **dict.fromkeys(("squashed", "tanh_mean", "state_std", "norm_obs"), _is_a(bool)),
        **dict.fromkeys(("obs_dim", "act_dim"), _within(1, MAX_WIDTH, int)),
        **dict.fromkeys(("env_kwargs", "provenance"), _is_a(dict)),
        **dict.fromkeys(("obs_shape", "act_shape"), _or_none(_is_sizes(MAX_AXES))),
        "hidden": _is_sizes(MAX_LAYERS),
        "clip_obs": _within(MIN_CLIP, MAX_CLIP, int, float),
        **dict.fromkeys(("memory", "view", "encoder"), _or_none(_is_a(dict))),
    },
    Encoder: {
        "kind": lambda value: value in ("gru", "lstm", "tcn"),
        "size": _within(1, MAX_WIDTH, int),
    },
    View: {
        **dict.fromkeys(("obs_dim", "act_dim", "history"), _within(1, MAX_WIDTH, int)),
        "columns": _all(_within(0, MAX_WIDTH, int)),
        "groups": _all(_is_text),
        "prev_action": _is_a(bool),
        "delay": _within(0, MAX_WIDTH, int),
        "noise": _all(_within(0, MAX_CLIP, int, float)),
    },
    MemoryMeta: {
        **dict.fromkeys(("entries", "dim", "k"), _within(1, MAX_SIZE, int)),
        "query": lambda value: value in QUERIES,
        "tau": _within(MIN_TAU, 1 / MIN_TAU, int, float),
        "student_weight": _within(0, 1, int, float),
    },
}
