"""A stack of learners in its environments."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from dpd.cli import main, parse_train
from dpd.run.stack import first_ages
from dpd.run.train import iterate
from dpd.run.training import Training

SIZES = ["--n-envs", "8", "--n-steps", "16", "--total-steps", "4096", "--minibatch-size", "16"]


def training(*flags: str, env: str = "HalfCheetah-v5") -> Training:
    return Training(parse_train([env, "--method", "none", *SIZES, *flags]))


def test_ages_are_uniform_and_a_learners_own_whoever_stands_beside_it() -> None:
    together = first_ages([(3, 0), (3, 1), (4, 0)], 1000).reshape(3, 1000)
    for row, who in zip(together, [(3, 0), (3, 1), (4, 0)], strict=True):
        np.testing.assert_array_equal(row, first_ages([who], 1000))
        # quantiles within five deviations, 5 * sqrt(0.25 / 1000) = 0.08
        np.testing.assert_allclose(np.quantile(row, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.08)
    assert len({tuple(row) for row in together.tolist()}) == 3
    assert (first_ages([(3, 0)], 10) != first_ages([(3, 0)], 10, 7)).all()  # new episodes later on


def test_staggered_environments_are_cut_at_times_of_their_own() -> None:
    staggered, plain = training("--stagger"), training()
    (stack,) = staggered.stacks
    ages = np.floor(1000 * first_ages(stack.ids, 8)).astype(int)
    assert stack.env.snapshot()["elapsed"].tolist() == ages.tolist()
    assert torch.equal(stack.obs, plain.stacks[0].obs)  # their states are as ever
    assert not plain.stacks[0].env.snapshot()["elapsed"].any()
    for _ in range(4):  # 64 steps
        iterate(staggered)
    expected = np.where(ages + 64 >= 1000, ages + 64 - 1000, ages + 64)
    assert stack.env.snapshot()["elapsed"].tolist() == expected.tolist()
    # a shortened episode is none to report
    assert stack.episodes.metrics()["train/return"].isnan().all()


def test_environments_that_cannot_be_copied_are_staggered_again_at_a_resume() -> None:
    run = training("--stagger", "--backend", "gymnasium", "--n-envs", "2")
    state = {k: x.clone() for k, x in run.state().items()}
    iterate(run)
    run.load_state(state | {"iteration": torch.tensor(5)})
    (stack,) = run.stacks
    ages = np.floor(1000 * first_ages(stack.ids, 2, 5)).astype(int)
    limits = [env.get_wrapper_attr("_elapsed_steps") for env in stack.env._envs.envs]  # type: ignore[attr-defined]
    assert limits == ages.tolist()
    assert stack.episodes.skipped.all()


class Batched(VectorEnv):
    """Environments of one step, made as a vector only."""

    def __init__(self, num_envs: int = 1, **_: Any) -> None:
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = spaces.Box(-1, 1, (1,), np.float32)
        self.single_action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros((self.num_envs, 1), np.float32), {}


def test_episodes_that_cannot_be_staggered_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "DpdTest/Batched-v0" not in gymnasium.registry:
        gymnasium.register("DpdTest/Batched-v0", vector_entry_point=Batched, max_episode_steps=9)
    argv = ["train", "DpdTest/Batched-v0", "--method", "none", *SIZES, "--stagger"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 2
    assert "use --no-stagger" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
