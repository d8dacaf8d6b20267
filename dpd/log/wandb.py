"""Weights & Biases: one W&B run per run directory, which a resume continues."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from dpd.errors import BadInput
from dpd.files import replacing
from dpd.log.config import WandbConfig
from dpd.log.csv import Point

NAME_PARTS = 3
"""Last parts of a run directory's path that name the W&B run: study/Hopper-v5/dpd."""


class WandbRun(NamedTuple):
    """The W&B run of a directory, which keeps this."""

    id: str
    project: str
    entity: str | None


def read_wandb_run(file: Path) -> WandbRun | None:
    """Read the W&B run that a directory belongs to; None before the first. Raises BadInput."""
    try:
        return WandbRun(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise BadInput(
            f"{file} does not name a W&B run; remove it, and the run continues as a new one there"
        ) from error


def kept_wandb_run(file: Path, config: WandbConfig) -> WandbRun | None:
    """Read the W&B run of a directory. Raises BadInput if flags would move it elsewhere."""
    place = read_wandb_run(file)
    for name in ("project", "entity"):
        asked = getattr(config, f"wandb_{name}")
        if place is not None and asked not in (None, getattr(place, name)):
            raise BadInput(
                f"this run logs to the W&B {name} {getattr(place, name)}, not {asked}; leave "
                f"--wandb-{name} out"
            )
    return place


class WandbLog:
    """Write a run's metrics to W&B.

    `eval/return` is the mean over learners, so that runs can be compared, and, if there are several
    learners, `eval/return/seed0-peer1` is that of one. W&B's step is the number of environment
    steps. Steps up to `known_step` are in W&B already, if this directory has a W&B run.
    """

    def __init__(
        self,
        run_dir: Path,
        names: Mapping[tuple[int, int], str],
        hparams: Mapping[str, Any],
        config: WandbConfig,
        file: str = "wandb.json",
        known_step: int | None = None,
    ) -> None:
        import wandb

        self._folder, self._names = run_dir, names
        place = kept_wandb_run(run_dir / file, config)
        self._known_step = -1 if place is None or known_step is None else known_step
        title = "/".join(run_dir.parts[-NAME_PARTS:])
        part = Path(file).stem.partition("-")[2]  # of a worker
        try:
            self._run = wandb.init(
                id=None if place is None else place.id,
                project=config.project if place is None else place.project,
                entity=config.entity if place is None else place.entity,
                group=config.group,
                mode=config.mode,  # type: ignore[arg-type]  # W&B refuses unknown ones
                name=f"{title}-{part}" if part else title,
                dir=str(run_dir),
                config=dict(hparams),
                resume=None if place is None else "allow",
                allow_val_change=True,  # --total-steps of a resumed run
                reinit="create_new",  # a study may have other runs
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            raise BadInput(
                f"cannot log to Weights & Biases ({error}); give "
                "--wandb-mode offline, or --no-wandb"
            ) from error
        if place is None:
            place = WandbRun(self._run.id, self._run.project, self._run.entity or config.entity)
            with replacing(run_dir / file) as draft:
                draft.write_text(json.dumps(place._asdict()) + "\n")

    @property
    def address(self) -> str:
        """The run's page, or the command that uploads it."""
        if not self._run.offline:
            return self._run.url or ""
        return f"wandb sync {self._folder / f'wandb/offline-run-*-{self._run.id}'}"

    def write(self, step: int, points: Sequence[Point]) -> None:
        """Write a record. A resumed run repeats the steps after its checkpoint: W&B has these."""
        if step <= self._known_step:
            return
        values: dict[str, list[float]] = {}
        record: dict[str, float] = {}
        for seed, peer, name, value in points:
            values.setdefault(name, []).append(value)
            if seed is not None and peer is not None and len(self._names) > 1:
                record[f"{name}/{self._names[seed, peer]}"] = value
        means = {name: sum(each) / len(each) for name, each in values.items()}
        self._run.log(means | record, step=step, commit=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)
