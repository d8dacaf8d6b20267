"""Settings of the engine that trains several runs at once; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dpd.agents.config import require
from dpd.config import TrainConfig
from dpd.errors import BadInput, flag

RETRIES = 2


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Place where runs train: this machine, or a Ray cluster."""

    engine: Literal["local", "ray"] = "local"
    """local: this machine. ray: every run is a task of a Ray cluster, which needs the extra
    `cluster` (pip install 'dpd[cluster]') here and dpd on all nodes."""
    address: str | None = None
    """Running Ray cluster: auto on one of its nodes, HOST:6379, or ray://HOST:10001. None: the one
    of RAY_ADDRESS, or else a new one on this machine."""
    task_cpus: int | None = None
    """CPUs that Ray reserves for a run, which are its --threads too. None: 1."""
    task_gpus: float | None = None
    """GPUs that Ray reserves for a run; 0.25 puts four runs on a GPU. None: 0."""
    retries: int | None = None
    """Times that a failed run begins again on Ray, from its last checkpoint, unless its input was
    refused or it met a NaN. None: 2."""

    def __post_init__(self) -> None:
        require(self, "be at least 1", "task_cpus", called=flag)
        require(self, "not be negative", "retries", called=flag)
        if self.task_gpus is not None and self.task_gpus <= 0:
            raise BadInput(f"--task-gpus must be above 0, not {self.task_gpus}")
        if self.gpus > 1 and self.gpus % 1:
            raise BadInput(f"--task-gpus above 1 must be a whole number, not {self.gpus}")
        given = ("address", "task_cpus", "task_gpus", "retries")
        idle = [name for name in given if getattr(self, name) is not None]
        if idle and not self.is_ray:
            raise BadInput(f"{flag(idle[0])} is for --engine ray; give that too, or leave it out")

    @property
    def is_ray(self) -> bool:
        """True if runs are tasks of a Ray cluster."""
        return self.engine == "ray"

    @property
    def cpus(self) -> int:
        """CPUs of a task."""
        return self.task_cpus or 1

    @property
    def gpus(self) -> float:
        """GPUs of a task."""
        return self.task_gpus or 0.0

    @property
    def attempts(self) -> int:
        """Times that a run may begin."""
        return 1 + (RETRIES if self.retries is None else self.retries)

    def refuse_unfit(self, plan: TrainConfig) -> None:
        """Raise BadInput if a run's device is not what its task would have."""
        device = plan.run.device
        if not self.is_ray:
            return
        if device.startswith("cuda:"):
            raise BadInput(f"--device {device}: Ray chooses the GPU of a task; give --device cuda")
        if device == "cuda" and not self.gpus:
            raise BadInput("--device cuda on --engine ray needs --task-gpus, for example 0.5")
        if device == "cpu" and self.gpus:
            raise BadInput(
                "--task-gpus would reserve GPUs that runs on the CPU do not use; leave it out, or "
                "give --device cuda after the --"
            )
