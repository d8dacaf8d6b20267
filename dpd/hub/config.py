"""Settings of `dpd push` and `dpd pull`; imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dpd.agents.config import require
from dpd.errors import BadInput, flag

Repo = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]


def require_repo(repo: str) -> None:
    """Raise BadInput unless a repository's name is one that the hub can have."""
    if not re.fullmatch(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", repo, re.ASCII):
        raise BadInput(f"a repository of the hub is named OWNER/NAME, not '{repo}'")


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Publish policies on the Hugging Face hub, with a model card made from their run.

    Plays fresh episodes for the card first. Needs pip install 'dpd[hub]' and a token that may write
    (hf auth login, or HF_TOKEN). Publishes policies, the card, the settings and the pictures of a
    run; neither checkpoints nor logs, and other files by their names only.
    """

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """A run directory, or a policy file."""
    repo: Repo
    """Repository on the hub; it is created if it does not exist."""
    private: bool = False
    """Create a private repository; one that exists stays as it is."""
    episodes: int = 20
    """Fresh deterministic episodes per policy, for the card."""
    seed: int = 0
    """Random seed of the episodes."""
    preview: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Write the files of the repository into this new directory to look at them, and publish
    nothing; needs no token. None: publish."""

    def __post_init__(self) -> None:
        require(self, "be at least 1", "episodes", called=flag)
        require(self, "not be negative", "seed", called=flag)
        require_repo(self.repo)
        if self.preview is not None and self.private:
            raise BadInput("--private does nothing with --preview, which publishes nothing")


@dataclass(frozen=True, kw_only=True)
class PullConfig:
    """Download policies from the Hugging Face hub.

    Takes policy files of dpd, which are checked, and Stable-Baselines3 zips with their statistics,
    which the other commands read without unpickling anything. Needs pip install 'dpd[hub]'.
    """

    repo: Repo
    """Repository on the hub."""
    out: Path | None = None
    """New directory for the files. None: the repository's name, in the current directory."""
    revision: str | None = None
    """Branch, tag or commit. None: the main branch."""

    def __post_init__(self) -> None:
        require_repo(self.repo)

    @property
    def target(self) -> Path:
        """The directory for the files."""
        return Path(self.repo.partition("/")[2]) if self.out is None else self.out
