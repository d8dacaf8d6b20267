"""Which backend an environment gets, and what is said where there is none."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
import warp as wp

from dpd.envs.base import UnsupportedEnv
from dpd.envs.make import WARP_FROM, check, choose_backend, make
from dpd.envs.tasks import TASKS
from dpd.envs.warp import WarpEnv
from dpd.envs.warp_physics import warp_device

wp.config.optimization_level = 0  # compiles in half the time

PLANAR = "Hopper-v5"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_make_chooses_warp_for_cuda_and_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [choose_backend(env_id, device=CUDA) for env_id in TASKS] == ["warp"] * 21
    assert [choose_backend(PLANAR, device=device) for device in (None, CPU)] == ["native"] * 2
    assert choose_backend(PLANAR, "warp", device=CPU) == "warp"
    with pytest.raises(UnsupportedEnv, match="there is one of HalfCheetah-v5"):
        choose_backend("Pendulum-v1", "warp", device=CUDA)
    assert choose_backend(PLANAR, env_kwargs={"ctrl_cost_weight": 0.0}, device=CUDA) == "warp"
    for attempt in (
        lambda: make(PLANAR, WARP_FROM, range(WARP_FROM), device=CUDA),
        lambda: check(PLANAR, "warp"),
    ):
        with pytest.raises(UnsupportedEnv, match="PyTorch finds no CUDA device"):
            attempt()
    with pytest.raises(UnsupportedEnv, match="mps"):
        warp_device("mps")


def test_what_warp_is_not_for_is_simulated_on_the_cpu_beside_a_gpu() -> None:
    assert choose_backend(PLANAR, device=CUDA, n_envs=WARP_FROM - 1) == "native"
    assert choose_backend("Pendulum-v1", device=CUDA) == "gymnasium"
    for backend in ("native", "gymnasium"):
        assert choose_backend(PLANAR, backend, device=CUDA) == backend


@pytest.mark.parametrize(
    ("backend", "package", "extra"), [("warp", "mujoco_warp", "gpu"), ("envpool",) * 3]
)
def test_without_its_packages_the_backend_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, backend: str, package: str, extra: str
) -> None:
    for module in (f"dpd.envs.{backend}", "dpd.envs.warp_physics"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # an import then fails as if it were missing
    with pytest.raises(
        UnsupportedEnv, match=rf"{backend} backend needs {package}: pip install 'dpd\[{extra}\]'"
    ):
        make(PLANAR, 1, [0], backend, device=CPU)


def test_a_check_says_what_the_environment_itself_says() -> None:
    spec = WarpEnv(PLANAR, 1, [0], "cpu").spec
    for name, value in dataclasses.asdict(check(PLANAR, "warp", device=CPU)).items():
        np.testing.assert_array_equal(value, getattr(spec, name))
    assert (spec.backend, spec.can_snapshot) == ("warp", True)
