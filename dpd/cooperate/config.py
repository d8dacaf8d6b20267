"""Settings of `dpd cooperate`; imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dpd.agents.config import require
from dpd.errors import BadInput, flag
from dpd.policies.config import ForeignConfig

NOT_FOREIGN = ForeignConfig()
Policies = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="POLICY ...")]
KEPT = {
    "be at least 1": (
        *("total_steps", "rounds", "probes", "probe_envs", "probe_steps", "horizon"),
        *("proxy_steps", "cf_steps", "steps", "batch", "episodes"),
    ),
    "be positive": ("proxy_lr", "cf_lr", "cf_box", "lr"),
    "not be negative": (
        *("margin", "cf_alpha", "cf_penalty", "cf_distinct", "anchor", "trial_episodes", "seed"),
    ),
    "lie in (0, 1]": ("gamma",),
    "lie in (0, 1)": ("holdout",),
}
"""Bounds of the settings."""


@dataclass(frozen=True, kw_only=True)
class CooperateConfig:
    """Let saved policies teach each other, each where it earns more, however they were trained.

    Cooperative knowledge distillation (Livanos et al., AAAI 2024) for continuous control.
    """

    paths: Policies = ()
    """Policy files, Stable-Baselines3 zips, or run directories for the best policy in each."""
    out: Path = Path("cooperative")
    """Directory for policies/, cooperative.html, cooperative.json and TensorBoard's tb/."""
    total_steps: int = 500_000
    """Budget of simulator steps, including the evaluations before and after."""
    rounds: int = 2
    """Rounds of comparing all policies and then teaching them."""
    probes: int = 256
    """Probe states from the episodes of each policy; all policies are compared on all of them."""
    probe_envs: int = 8
    """Environments that collect the probe states."""
    probe_steps: int = 1000
    """Steps of each of these environments; the probe states are spread over them."""
    holdout: float = 0.2
    """Share of the probe states excluded from learning; gaps, drift and R² are measured on it."""
    horizon: int = 50
    """Steps for which every policy is played from a state to measure its return there."""
    gamma: float = 0.99
    """Discount of the rewards in these returns."""
    margin: float = 0.1
    """Smallest gap that counts, as a multiple of the standard deviation of all returns."""
    control: Literal["none", "unfocused"] = "none"
    """unfocused: every policy imitates a random other one on all states, better or not."""
    counterfactuals: bool = True
    """Search for states near those where a peer is better, at which its lead is larger."""
    proxy_steps: int = 1000
    """Gradient steps of the network that predicts the gap from the simulator's state."""
    proxy_lr: float = 1e-3
    """Learning rate of that network."""
    cf_alpha: float = 0.5
    """Target gap of a counterfactual: 0 is the gap where it starts, 1 is among the largest."""
    cf_penalty: float = 0.05
    """Penalty on the change of a coordinate, per standard deviation."""
    cf_lr: float = 0.02
    """Step size of the search, in standard deviations."""
    cf_steps: int = 60
    """Gradient steps of the search."""
    cf_box: float = 0.5
    """Largest change of a coordinate, in standard deviations."""
    cf_distinct: float = 0.05
    """Counterfactuals closer than this to another state, in standard deviations, are dropped."""
    steps: int = 1000
    """Gradient steps per student and round."""
    batch: int = 128
    """States per gradient step: this many to learn from, and this many to stay unchanged on."""
    lr: float = 1e-3
    """Learning rate of the students."""
    anchor: float = 1.0
    """Weight of staying unchanged where no other policy is better."""
    trial_episodes: int = 5
    """Whole episodes, different from those of the evaluation, that test every student after a
    round; a student that got worse is rolled back. 0: no test."""
    episodes: int = 20
    """Deterministic episodes per policy in the evaluations; the same before and after."""
    seed: int = 0
    """Seed of the episodes, networks and minibatches."""
    threads: int | None = None
    """CPU threads of the simulation; None: all cores."""
    foreign: Annotated[ForeignConfig, tyro.conf.OmitArgPrefixes] = NOT_FOREIGN
    json: bool = False
    """Print JSON instead of tables."""
    resume: Path | None = None
    """Resume the cooperation in this directory with its saved settings; --total-steps and --rounds
    may be raised, and --threads changed."""

    def __post_init__(self) -> None:
        if self.resume is not None and self.paths:
            raise BadInput("--resume uses the policies of the saved run; leave POLICY out")
        if self.resume is None and len(self.paths) < 2:
            raise BadInput("dpd cooperate needs at least two POLICYs, which teach each other")
        for bound, names in KEPT.items():
            require(self, bound, *names, called=flag)
        if self.probes > self.probe_envs * self.probe_steps:
            raise BadInput(
                f"--probes {self.probes} is more than the states that --probe-envs "
                f"{self.probe_envs} x --probe-steps {self.probe_steps} visit"
            )

    @property
    def wants_counterfactuals(self) -> bool:
        """True if counterfactuals are searched for; the control has no gap to increase."""
        return self.counterfactuals and self.control == "none"


NOT_SAVED = ("paths", "foreign", "resume", "json")
CHANGEABLE = ("total_steps", "rounds", "threads", "json")
"""Settings that a resumed cooperation may change."""


@contextmanager
def cooperation_file(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the contents of a folder's cooperative.json.

    Raises BadInput if it is missing, or if it or the code inside the block finds it malformed.
    """
    path = folder / "cooperative.json"
    try:
        yield json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{folder} is no run of dpd cooperate: it holds no {path.name}") from error
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} was not written by dpd cooperate: {error!r}") from error


def saved_config(folder: Path) -> CooperateConfig:
    """Return the settings of the cooperation in a folder, as defaults for `--resume`."""
    with cooperation_file(folder) as saved:
        settings = {k: v for k, v in saved["settings"].items() if k not in NOT_SAVED}
        return CooperateConfig(**settings | {"out": folder}, resume=folder)


def require_saved_settings(config: CooperateConfig, saved: CooperateConfig) -> None:
    """Raise BadInput if a flag would change a setting that a resumed cooperation must keep."""
    for given, kept in ((config, saved), (config.foreign, saved.foreign)):
        for name in (f.name for f in fields(given) if f.name not in (*CHANGEABLE, "foreign")):
            if getattr(given, name) != getattr(kept, name):
                raise BadInput(f"--resume uses the saved settings; leave {flag(name)} out")
