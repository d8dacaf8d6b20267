"""Settings of Weights & Biases, for `dpd train` and `dpd distill`; imports no torch."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dpd.errors import BadInput

WANDB_PROJECT = "dpd"
"""The project of runs for which nobody chose one."""


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases, an experiment tracker, in addition to TensorBoard and metrics.csv."""

    wandb: bool = False
    """Log to Weights & Biases too; needs pip install 'dpd[wandb]'. A resumed run continues the same
    W&B run, whose id is in wandb.json."""
    wandb_project: str | None = None
    """Project. None: that of WANDB_PROJECT, or else dpd."""
    wandb_entity: str | None = None
    """User or team. None: that of WANDB_ENTITY, or else your default one."""
    wandb_group: str | None = None
    """Name under which W&B groups runs. None: that of WANDB_RUN_GROUP; with --workers, the run."""
    wandb_mode: Literal["online", "offline"] | None = None
    """offline: write files that `wandb sync` uploads later. None: that of WANDB_MODE, or else
    online."""

    @property
    def project(self) -> str:
        """The project, resolved."""
        return self.wandb_project or os.environ.get("WANDB_PROJECT") or WANDB_PROJECT

    @property
    def entity(self) -> str | None:
        """The user or team, resolved; None for the default one."""
        return self.wandb_entity or os.environ.get("WANDB_ENTITY") or None

    @property
    def group(self) -> str | None:
        """The group, resolved; None for none."""
        return self.wandb_group or os.environ.get("WANDB_RUN_GROUP") or None

    @property
    def mode(self) -> str:
        """The mode, resolved: online, offline, or disabled by the environment."""
        return self.wandb_mode or os.environ.get("WANDB_MODE") or "online"

    @property
    def is_on(self) -> bool:
        """True if the run logs to W&B."""
        return self.wandb and self.mode != "disabled"

    def grouped(self, name: str) -> WandbConfig:
        """Return the settings with a group, if none is given."""
        return replace(self, wandb_group=self.group or name)

    def refuse_idle(self, argv: Sequence[str]) -> None:
        """Raise BadInput if flags choose details of W&B without --wandb."""
        given = [word.partition("=")[0] for word in argv if re.match(r"--wandb[-_]\w", word)]
        if given and not self.wandb:
            raise BadInput(f"{given[0].replace('_', '-')} does nothing without --wandb")


def require_wandb(config: WandbConfig) -> None:
    """Raise BadInput if a run cannot log to W&B: the package or a login is missing."""
    if not config.is_on:
        return
    spec = importlib.util.find_spec("wandb")
    # W&B's own folder of logs, wandb/, looks like a package without an origin.
    if spec is None or spec.origin is None:
        raise BadInput("--wandb needs one more package: pip install 'dpd[wandb]'")
    if config.mode != "online":
        return
    import wandb

    try:
        wandb.login()  # in a terminal, it asks for a key
    except wandb.errors.Error as error:
        raise BadInput(
            f"not logged in to Weights & Biases ({error}); run wandb login, set WANDB_API_KEY, or "
            "give --wandb-mode offline"
        ) from error
