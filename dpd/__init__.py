"""Dual policy distillation and its baselines for continuous control."""

import sys
from importlib import import_module
from pkgutil import resolve_name
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dpd.api import (
        compare,
        cooperate,
        distill,
        evaluate,
        export,
        fidelity,
        groups,
        pull,
        push,
        report,
        study,
        sweep,
        train,
        tune,
        watch,
    )
    from dpd.envs.user_task import MujocoTask, register_task
    from dpd.policies.hybrid_file import load_policy as load
    from dpd.policies.playing import play
    from dpd.policies.policyfile import Policy
    from dpd.run.callback import Callback, StopTraining, TrainingState

__all__ = [
    "Callback",
    "MujocoTask",
    "Policy",
    "StopTraining",
    "TrainingState",
    "__version__",
    "compare",
    "cooperate",
    "distill",
    "evaluate",
    "export",
    "fidelity",
    "groups",
    "load",
    "play",
    "pull",
    "push",
    "register_task",
    "report",
    "study",
    "sweep",
    "train",
    "tune",
    "watch",
]
HOMES = {
    "Callback": "dpd.run.callback:Callback",
    "MujocoTask": "dpd.envs.user_task:MujocoTask",
    "Policy": "dpd.policies.policyfile:Policy",
    "StopTraining": "dpd.run.callback:StopTraining",
    "TrainingState": "dpd.run.callback:TrainingState",
    "load": "dpd.policies.hybrid_file:load_policy",
    "play": "dpd.policies.playing:play",
    "register_task": "dpd.envs.user_task:register_task",
}
"""Import paths of the public names that are neither functions of dpd.api nor modules."""
ROOMS = (
    *("cooperate", "distill", "evaluate", "export", "fidelity", "report", "study", "tune"),
    "watch",
)
"""Modules that have the name of a function of dpd.api."""


def __getattr__(name: str) -> object:
    # Import on first use: `dpd --help` must not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module 'dpd' has no attribute '{name}'")
    if name in ROOMS:
        return import_module(f"dpd.{name}")
    return resolve_name(HOMES.get(name, f"dpd.api:{name}"))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class CallableModule(ModuleType):
    """A module with the name of a function of dpd.api: a call of the module is one of that."""

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.__wrapped__(*args, **kwargs)  # type: ignore[operator]

    @property
    def __wrapped__(self) -> object:
        """The function, for help texts and signatures."""
        return getattr(import_module("dpd.api"), self.__name__.rpartition(".")[2])


class Package(ModuleType):
    """The package, in which `dpd.study`, `dpd.distill` and other modules are functions too.

    Python sets a package's attribute to a module as soon as anything imports that module, which
    would hide a function of the same name.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name in ROOMS and type(value) is ModuleType:
            value.__class__ = CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = Package
