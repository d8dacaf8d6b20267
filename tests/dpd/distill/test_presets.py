"""Presets: what each does is held to the paper's words or to the 2020 code's."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from dpd.agents.offpolicy_config import DDPGConfig
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.student_config import StudentConfig
from dpd.agents.table import ALGORITHMS
from dpd.cli import parse_run, parse_train
from dpd.config import TrainConfig
from dpd.distill.peers import Dose, dose_of, dpd_loss
from dpd.distill.peers_config import DPDConfig
from dpd.distill.presets import DPD_PRESETS
from dpd.distill.rulers import gate_weight
from dpd.distill.teaching_config import OnPolicyConfig
from dpd.errors import BadInput
from dpd.run.config import RunConfig
from dpd.run.settings import preset_settings, updated
from tests.toy.peers import F64, LOSS, REPLAYED, STEP, Setup, f64, vary


def distil(preset: str, algo: str) -> DPDConfig:
    """Return a preset's settings of the distillation."""
    return updated(DPDConfig(), preset_settings(preset, "dpd", algo).get("distill", {}))


def learners(preset: str, algo: str, **more: Any) -> Any:
    """Return a preset's settings of the learners."""
    settings = {k: v for k, v in preset_settings(preset, "dpd", algo).items() if k != "distill"}
    return replace(updated(ALGORITHMS[algo].settings(), settings), **more)


@pytest.mark.parametrize("algo", [name for name in ALGORITHMS if name != "student"])
@pytest.mark.parametrize("preset", DPD_PRESETS)
def test_every_preset_makes_a_run_of_every_algorithm(preset: str, algo: str) -> None:
    config = TrainConfig(
        run=RunConfig(),
        algos=((algo, learners(preset, algo)),),
        method="dpd",
        distill=distil(preset, algo),
    )
    assert config.iterations > 0


@pytest.mark.parametrize("algo", [name for name in ALGORITHMS if name != "student"])
def test_the_preset_paper_is_what_dpd_does_without_a_preset(algo: str) -> None:
    assert distil("paper", algo) == DPDConfig()
    if algo != "ddpg":  # whose learners' settings are those of the old baselines
        assert learners("paper", algo) == ALGORITHMS[algo].settings()


def test_the_papers_dose_is_by_family() -> None:
    # 10 samples x 0.5 updates: a distillation step after each of five RL updates
    assert dose_of(DPDConfig(), Setup(STEP).agent) == Dose(1e-5, 40, 256, 0.5)
    agent = Setup(STEP, algo=DDPGConfig(n_steps=10, updates_per_step=0.5, learning_starts=0)).agent
    assert dose_of(DPDConfig(), agent) == Dose(1e-4, 5, 64, float("inf"))
    named = DPDConfig(lr=1e-3, steps=7, batch_size=8, max_grad_norm=2.0)
    assert dose_of(named, agent) == Dose(1e-3, 7, 8, 2.0)


def test_ddpg_of_the_paper_follows_the_old_baselines() -> None:
    paper, released = learners("paper", "ddpg"), learners("released", "ddpg")
    assert (paper.lr, paper.critic_lr, paper.tau, paper.minibatch_size) == (1e-4, 1e-3, 0.01, 64)
    assert (paper.exploration, paper.noise_std, paper.norm_obs) == ("param", 0.2, True)
    assert (paper.hidden, released.hidden) == ((64, 64, 64), (64, 64))
    assert (released.samples, released.updates) == (100, 50)


def test_released_ppo_has_the_value_loss_of_the_baselines_it_was_built_on() -> None:
    # ppo2: vf_coef 0.5 times half of the mean of the larger squared error, clip 0.2; log std 0
    found = learners("released", "ppo")
    assert (found.value_clip, found.value_coef, found.log_std_init) == (0.2, 0.25, 0.0)
    paper = learners("paper", "ppo")
    assert (paper.value_clip, paper.value_coef, paper.log_std_init) == (None, 0.5, -0.5)


# --- The 2020 code's defects ---


@pytest.mark.parametrize("algo", REPLAYED)
def test_in_the_released_code_the_weights_cancel(algo: str) -> None:
    # D1: whatever alpha, the loss is the mean distance; what it was meant to be is not
    released = distil("released", algo)
    losses = []
    for config in (released, vary(released, alpha=5.0), vary(released, control="none", alpha=5.0)):
        setup = Setup(config, algo=algo)
        targets = setup.choose()
        losses.append(setup.loss(targets))
        unweighted = setup.loss(targets._replace(weight=torch.ones_like(targets.weight)))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(losses[0], unweighted, rtol=1e-12, atol=0)
    assert ((losses[2] - unweighted).abs() > 1e-3 * unweighted).all()


def test_a_cancelled_loss_is_that_of_every_weight_times_every_distance() -> None:
    # weights 1, 0, 1, 0; distances 1, 2, 3, 4: sum_ij w_i D_j = 2 * 10, over 4 * 4 pairs
    config = DPDConfig(gate="hard", control="cancelled")
    weight = gate_weight(f64(3, -1, 2, -2), torch.ones(1, 1), config)
    assert dpd_loss(f64(1, 2, 3, 4), weight).tolist() == [20 / 16]


def test_in_the_released_code_two_critics_judge_one_action() -> None:
    # D2: learners that act alike but judge differently; see test_rulers for it by hand
    for ruler, is_zero in ((distil("released", "ddpg").ruler, False), ("action", True)):
        setup = Setup(vary(LOSS, ruler=ruler), algo="ddpg")
        agent = setup.agent
        agent.nets.flat.detach()[1] = agent.nets.flat.detach()[0]
        for x in (agent.obs_norm.moments.mean, agent.obs_norm.moments.var):
            x[1] = x[0]
        agent.obs_norm.update(setup.batch.raw_obs, torch.zeros(2, 64, dtype=torch.bool))
        setup.choose()
        xi = setup.method.metrics["distill/xi_mean"].abs()
        assert bool((xi < 1e-12).all()) == is_zero
        assert bool((xi > 1e-3).all()) != is_zero


def test_released_ppo_teaches_where_the_own_value_is_larger() -> None:
    # D3: of two states, the one where the peer is further ahead weighs less
    unit = torch.ones(1, 1, dtype=F64)
    released, paper = (
        gate_weight(f64(-1, 1), unit, distil(preset, "ppo"))[0] for preset in ("released", "paper")
    )
    assert released[0] > 1 > released[1]
    assert paper[0] < 1 < paper[1]


def test_released_ppo_hardly_moves_for_its_peer() -> None:
    # D4: one step, in one of five iterations of 640 steps each, with a loss that carries another
    # 1/512; measured 0.2 %
    config, algo = distil("released", "ppo"), learners("released", "ppo", hidden=(16, 16))
    assert (config.coef, config.every) == (1 / 512, 5)
    setup = Setup(config, algo=algo)
    before = setup.flat.clone()
    setup.method.on_batch(setup.batch, 0.0)
    setup.agent.update(setup.batch, 0.0)
    between = setup.flat.clone()
    setup.method.step()
    assert setup.agent.optimizer.steps.tolist() == [641, 641]
    assert setup.method.optimizer.steps.tolist() == [0, 0]
    by_learning = torch.linalg.vector_norm(between - before, dim=1)
    by_distilling = torch.linalg.vector_norm(setup.flat - between, dim=1)
    assert (by_distilling > 0).all()
    assert (by_distilling < 0.01 * by_learning).all()


def test_modern_ppo_is_what_the_study_measures() -> None:
    config = parse_train(["--preset", "modern"])
    assert config.distill == DPDConfig(
        divergence="kl_forward", states="mixed", dose="loss", coef=0.1, target_kl=0.35
    )
    assert config.algos[0][1] == PPOConfig(share_experience=True, n_envs=8, epochs=20)


# --- rsl_rl ---


def test_rsl_rl_is_the_configuration_of_isaac_lab() -> None:
    # isaaclab_tasks .../anymal_d/agents/rsl_rl_distillation_cfg.py: num_steps_per_env 120,
    # num_learning_epochs 2, learning_rate 1e-3, gradient_length 15, init_noise_std 0.1
    config = parse_run(["--preset", "rsl_rl", "--teacher", "t"], "distill")
    ((name, student),) = config.algos
    assert (config.method, name) == ("on-policy", "student")
    assert isinstance(student, StudentConfig)
    assert isinstance(config.distill, OnPolicyConfig) and config.distill.explores
    assert (student.n_steps, student.lr) == (120, 1e-3)
    assert math.exp(student.log_std_init) == pytest.approx(0.1)
    assert student.minibatch_size == 15 * student.n_envs
    states = config.distill.steps * student.minibatch_size
    assert states == 2 * student.samples and config.distill.divergence == "mse"


def test_rsl_rl_means_a_method_and_flags_change_its_settings() -> None:
    flags = ["--distill.steps", "4", "--n-envs", "16"]
    config = parse_run(["--preset", "rsl_rl", "--teacher", "t", *flags], "distill")
    assert config.distill.steps == 4 and config.algos[0][1].n_envs == 16  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="method dagger has no presets for student"):
        parse_run(["--preset", "rsl_rl", "--method", "dagger", "--teacher", "t"], "distill")
    with pytest.raises(BadInput, match="method on-policy belongs to dpd distill"):
        parse_train(["--preset", "rsl_rl"])
