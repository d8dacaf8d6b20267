"""Presets of learners, beside those of a method."""

import pytest

from dpd.agents.offpolicy_config import SACConfig
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.table import ALGORITHMS
from dpd.cli import parse_train
from dpd.distill.peers_config import DPDConfig

LEARN = [name for name in ALGORITHMS if name != "student"]


@pytest.mark.parametrize("algo", LEARN)
@pytest.mark.parametrize("method", ["paper", "modern", "released", "none"])
@pytest.mark.parametrize("name", ["large"])
def test_a_preset_of_learners_goes_with_every_one_of_the_method(name, method, algo) -> None:
    words = ["--method", "none", "--preset", name] if method == "none" else []
    for both in (words,) if words else (f"{method},{name}", f"{name},{method}"):
        argv = both if words else ["--preset", str(both)]
        config = parse_train([*argv, "--algo", algo, "--total-steps", "10000000"])
        (_, learners) = config.algos[0]
        assert learners.n_envs == ALGORITHMS[algo].presets[name]["n_envs"]
        assert learners.stagger
        assert not parse_train(["--algo", algo, "--total-steps", "10000000"]).algos[0][1].stagger


def test_the_larger_dose_is_for_steps_alone_and_yields_to_the_methods_own() -> None:
    def dose(*argv: str) -> tuple[float | None, int | None]:
        distill = parse_train([*argv, "--total-steps", "10000000"]).distill
        assert isinstance(distill, DPDConfig)
        return distill.lr, distill.batch_size

    assert dose("--preset", "paper,large") == (1e-4, 4096)
    assert dose("--preset", "modern,large") == (None, None)  # a term in the loss has neither
    assert dose("--preset", "released,large") == (None, 512)  # the 2020 code's
    assert dose("--preset", "paper,large", "--distill.lr", "3e-5") == (3e-5, 4096)


def test_unlike_peers_get_each_its_own() -> None:
    config = parse_train(
        ["--algo", "ppo,sac", "--preset", "modern,large", "--total-steps", "9999999"]
    )
    assert [algo.n_envs for _, algo in config.algos] == [2048, 128]


def test_a_method_for_unlike_peers_leaves_their_settings_alone() -> None:
    config = parse_train(["--algo", "ppo,sac", "--preset", "modern"])
    assert [algo for _, algo in config.algos] == [PPOConfig(), SACConfig()]
