"""Students: learners of any width that a distillation method alone moves."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.learners import Learners
from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig
from dpd.agents.replay import Replay
from dpd.agents.student import Student
from dpd.agents.student_config import StudentConfig
from dpd.policies.metadata import PolicyMeta
from dpd.policies.policyfile import Policy, load, save
from tests.agents.parity import A, O, filled

F64 = torch.float64
SMALL: dict[str, Any] = {
    "n_envs": 2,
    "n_steps": 6,
    "minibatch_size": 8,
    "capacity": 40,
    "hidden": (8, 8),
    "lr": 1e-2,
}
SAME = StudentConfig(**SMALL)
UNLIKE = StudentConfig(**SMALL, sizes=("4x8", "8x4", "16"))
# two groups of three peers
SEEDS = [(0, 0), (0, 1), (0, 2), (7, 0), (7, 1), (7, 2)]
ROW_SEEDS = [100, 200, 300, 400, 500, 600]
CONFIGS = {
    "of one width": SAME,
    "of unlike widths": UNLIKE,
    "of unlike widths, relu, not normalised": replace(UNLIKE, activation="relu", norm_obs=False),
}


def build(config: StudentConfig, seeds: list[tuple[int, int]] = SEEDS) -> Student:
    return Student(config, O, A, seeds, F64)


def taught(agent: Student, obs: Tensor) -> Tensor:
    """Return the losses [N] of a teacher that acts sin(3 obs), and take a step along them."""
    dist = agent.dist(agent.obs_norm(obs))
    loss = -dist.logp((3 * obs[..., :A]).sin()).mean(1)
    agent.optimizer.step(torch.autograd.grad(loss.sum(), agent.nets.flat)[0])
    return loss.detach()


def iterate(agent: Any, row_seeds: list[int], iterations: range = range(4)) -> None:
    """Collect, be taught for five steps, and take in what was collected."""
    for i in iterations:
        rollout = filled(agent, [s + i for s in row_seeds])
        batch = agent.prepare(rollout)
        assert agent.update(batch, 0.0) == {}
        for _ in range(5):
            taught(agent, batch.raw_obs)
        agent.observe(rollout)


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> StudentConfig:
    return CONFIGS[request.param]


def test_students_of_any_width_together_equal_each_alone(config: StudentConfig) -> None:
    # 4 iterations of 5 steps: 20
    together = build(config)
    start = together.nets.flat.detach().clone()
    iterate(together, ROW_SEEDS)
    assert together.optimizer.steps.tolist() == [20] * 6
    for n, (seed, peer) in enumerate(SEEDS):
        own = replace(config, sizes=(), hidden=config.hidden_of(peer))
        alone = build(own, [(seed, peer)])
        assert alone.nets.padding is None
        iterate(alone, ROW_SEEDS[n : n + 1])
        for name, view in alone.nets.views.items():
            found = together.nets.own(n, name)
            torch.testing.assert_close(found, view[0], rtol=0, atol=1e-12)
        assert torch.equal(together.obs_norm.mean[n], alone.obs_norm.mean[0])
        assert (together.nets.flat[n] - start[n]).abs().max() > 0.05


def test_a_width_that_a_student_lacks_never_comes_to_life() -> None:
    # O = 3, A = 2, 16x16: 3*16+16 + 16*16+16 + 16*2+2 + 2 = 372 numbers a row; 4x8 has
    # 3*4+4 + 4*8+8 + 8*2+2 + 2 = 76, 8x4 has 3*8+8 + 8*4+4 + 4*2+2 + 2 = 80
    agent = build(UNLIKE)
    padding = agent.nets.padding
    assert padding is not None
    assert padding.sum(1).tolist() == [296, 292, 0] * 2
    iterate(agent, ROW_SEEDS)
    for x in (agent.nets.flat, agent.optimizer.exp_avg, agent.optimizer.exp_avg_sq):
        assert not x[padding].any()
        assert x[~padding].any()


def test_students_come_nearer_to_what_they_are_taught(config: StudentConfig) -> None:
    agent = build(config)
    obs = torch.randn(6, 64, O, dtype=F64, generator=torch.Generator().manual_seed(0))
    first = taught(agent, obs)
    for _ in range(200):
        last = taught(agent, obs)
    assert (last < first - 0.3).all()


def test_a_student_starts_as_the_policy_that_ppo_draws_from_its_seed() -> None:
    student = build(SAME)
    ppo = PPO(PPOConfig(n_envs=2, n_steps=8, minibatch_size=8, hidden=(8, 8)), O, A, SEEDS, F64)
    for n in range(6):
        drawn = ppo.export(n)
        assert student.export(n).keys() == drawn.keys()
        for name, x in student.export(n).items():
            assert torch.equal(x, drawn[name]), name


@pytest.mark.parametrize("peer", range(3))
def test_an_exported_student_has_its_own_widths_and_acts_as_before(
    peer: int, tmp_path: Path
) -> None:
    agent = build(UNLIKE)
    iterate(agent, ROW_SEEDS)
    hidden = ((4, 8), (8, 4), (16, 16))[peer]
    tensors = agent.export(3 + peer)
    assert tensors["actor.0.weight"].shape == (O, hidden[0])
    assert tensors["actor.1.weight"].shape == hidden
    assert tensors["actor.1.bias"].shape == (1, hidden[1])
    assert tensors["actor.2.weight"].shape == (hidden[1], A)
    meta = PolicyMeta(
        algo="student",
        env_id="probe",
        activation="tanh",
        squashed=False,
        obs_dim=O,
        act_dim=A,
        hidden=hidden,
        env_kwargs={},
        provenance={},
    )
    ends = {"act_low": -torch.ones(A), "act_high": torch.ones(A)}
    obs = 3 * torch.randn(20, O, dtype=F64, generator=torch.Generator().manual_seed(0))
    expected = agent.mode(obs.expand(6, 20, O))[3 + peer]
    torch.testing.assert_close(Policy(tensors, meta).mode(obs), expected, rtol=0, atol=1e-12)
    save(path := tmp_path / "p.safetensors", tensors | ends, meta)  # checks sizes when it reads
    torch.testing.assert_close(load(path).mode(obs.float()).double(), expected, rtol=0, atol=1e-5)


def test_a_student_starts_from_a_policy_of_its_width_alone() -> None:
    teacher, agent = build(UNLIKE), build(UNLIKE)
    iterate(teacher, ROW_SEEDS)
    agent.start_from(3, teacher.export(0))  # peer 0 of the other group
    obs = torch.randn(20, O, dtype=F64, generator=torch.Generator().manual_seed(0)).expand(6, 20, O)
    torch.testing.assert_close(agent.mode(obs)[3], teacher.mode(obs)[0], rtol=0, atol=1e-9)
    before = agent.nets.flat.detach().clone()
    with pytest.raises(
        ValueError, match=r"the saved actor\.0\.weight is .*\(3, 4\), not .*\(3, 8\)"
    ):
        agent.start_from(1, teacher.export(0))
    assert torch.equal(agent.nets.flat, before)


def test_going_on_from_a_state_equals_never_having_stopped(config: StudentConfig) -> None:
    straight, first, second = (build(config) for _ in range(3))
    for agent in (straight, first):
        agent.retry([1], 1)  # a rate of its own, which the state must bring back
    iterate(straight, ROW_SEEDS, range(5))
    iterate(first, ROW_SEEDS, range(3))
    second.load_state({name: x.clone() for name, x in first.state().items()})
    second.replay.extend(first.replay.since(0))
    iterate(second, ROW_SEEDS, range(3, 5))
    expected, found = straight.state(), second.state()
    assert expected.keys() == found.keys()
    for name, x in expected.items():
        assert torch.equal(x, found[name]), name
    assert torch.equal(straight.replay.since(0), second.replay.since(0))


def test_a_state_of_other_students_is_refused(config: StudentConfig) -> None:
    with pytest.raises(ValueError, match="not"):
        build(config, SEEDS[:3]).load_state(build(config).state())
    turned = replace(UNLIKE, sizes=UNLIKE.sizes[::-1])
    with pytest.raises(ValueError, match="other widths"):
        build(turned).load_state(build(UNLIKE).state())


def test_the_replay_holds_what_was_collected_and_drops_the_oldest() -> None:
    # 40 states are 20 steps of 2 environments; of 4 iterations of 6 steps the last 20 are left
    agent = build(SAME)
    rollouts = [filled(agent, [s + i for s in ROW_SEEDS]) for i in range(4)]
    rollouts[3].valid[2, 5] = False
    for rollout in rollouts:
        batch = agent.prepare(rollout)
        assert batch.data is None and batch.returns is None
        assert torch.equal(batch.raw_obs, rollout.flat_obs())
        assert torch.equal(batch.valid, rollout.valid.flatten(1))
    replay = agent.replay
    assert replay is agent.replay
    assert (replay.total, replay.held) == (24, 20)
    assert replay.live.tolist() == [40, 40, 38, 40, 40, 40]
    seen = torch.cat([r.obs for r in rollouts], 1)[:, 4:]
    assert torch.equal(replay.since(0)[..., :O], seen)
    # the newest state of all is environment 1 at the last step; of row 2 at the last but one
    newest = replay.states(torch.arange(6).unsqueeze(1), torch.zeros(6, 1, dtype=torch.int64))
    last = [-1, -1, -2, -1, -1, -1]
    assert torch.equal(newest[:, 0], seen[range(6), last, 1])


def test_memory_is_foretold_by_the_settings() -> None:
    config = StudentConfig(**SMALL | {"capacity": 41})
    memory = Replay(config, 3, obs_dim=5, act_dim=2, dtype=torch.float32)
    held = memory.rows.nbytes + memory._samples.nbytes
    assert config.replay_bytes(obs_dim=5, act_dim=2, n_learners=3) == held


def test_students_answer_without_a_value_and_are_never_warming_up() -> None:
    agent: Learners = build(UNLIKE)
    obs = torch.randn(6, 7, O, dtype=F64)
    answer = agent.ask(obs)
    assert answer.value is None
    assert not answer.dist.squashed and not answer.dist.mean.requires_grad
    assert torch.equal(answer.dist.mode(), agent.mode(obs))
    assert answer.dist.log_std.eq(-0.5).all()
    assert not agent.warming_up
    assert agent.reward_scale.tolist() == [[1.0]] * 6


def test_actions_are_the_mean_and_a_deviation_times_the_noise() -> None:
    agent = build(UNLIKE)
    obs, noise = torch.randn(6, 2, O, dtype=F64), agent.noise()
    assert noise.shape == (6, 6, 2, A)
    expected = agent.ask(obs).dist.mean + torch.tensor(-0.5, dtype=F64).exp() * noise[:, 0]
    torch.testing.assert_close(agent.act(obs, noise[:, 0]), expected, rtol=0, atol=1e-12)


def test_without_a_method_students_stay_as_they_are() -> None:
    agent = build(SAME)
    before = agent.nets.flat.detach().clone()
    batch = agent.prepare(filled(agent, ROW_SEEDS))
    assert agent.update(batch, 0.5) == {}
    assert torch.equal(agent.nets.flat, before)
    with pytest.raises(ValueError, match="distil by separate gradient steps"):
        agent.update(batch, 0.5, lambda minibatch: (minibatch.ratio.sum(1), {}))


def test_a_diverged_row_alone_gets_new_numbers_and_half_the_rate() -> None:
    agent, other = build(SAME), build(SAME)
    agent.retry([1], 1)
    same = (agent.noise() == other.noise()).flatten(1).all(1)
    assert same.tolist() == [True, False, True, True, True, True]
    agent.update(agent.prepare(filled(agent, ROW_SEEDS)), 0.0)
    assert agent.optimizer.lr == [1e-2, 0.5e-2, 1e-2, 1e-2, 1e-2, 1e-2]


def test_peers_may_differ_in_rate_and_discount() -> None:
    config = replace(SAME, peer_lr=(1e-3, 2e-3, 3e-3), peer_gamma=(0.9, 0.95, 1.0))
    agent = build(config)
    assert agent.optimizer.lr == [1e-3, 2e-3, 3e-3] * 2
    assert agent.gamma.flatten().tolist() == [0.9, 0.95, 1.0] * 2


def test_a_width_alone_stands_for_all_layers_of_hidden() -> None:
    config = StudentConfig(hidden=(64, 32, 16), sizes=("24", "64x48x8"))
    assert [config.hidden_of(peer) for peer in (0, 1)] == [(24, 24, 24), (64, 48, 8)]
    assert [SAME.hidden_of(peer) for peer in (0, 1)] == [(8, 8), (8, 8)]
    assert (
        StudentConfig().plan == "8 envs x 256 steps = 2,048 per learner, the latest 200,000 stored"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr must be positive, not 0.0"),
        ({"n_envs": 0}, "n_envs must be positive, not 0"),
        ({"n_steps": -1}, "n_steps must be positive, not -1"),
        ({"capacity": 0}, "capacity must be positive, not 0"),
        ({"minibatch_size": 0}, "minibatch_size must be positive, not 0"),
        ({"peer_lr": (1e-3, 0.0)}, r"peer_lr must be positive, not \(0.001, 0.0\)"),
        ({"gamma": 1.1}, r"gamma must lie in \[0, 1\], not 1.1"),
        ({"peer_gamma": (0.9, -0.1)}, r"peer_gamma must lie in \[0, 1\], not \(0.9, -0.1\)"),
        ({"hidden": ()}, r"hidden must name positive layer sizes, not \(\)"),
        ({"hidden": (64, 0)}, r"hidden must name positive layer sizes, not \(64, 0\)"),
        ({"sizes": ("64x",)}, "sizes must be words such as 64x64 or 64, not '64x'"),
        ({"sizes": ("64", "big")}, "sizes must be words such as 64x64 or 64, not 'big'"),
        ({"sizes": ("16x0",)}, "sizes must be words such as 64x64 or 64, not '16x0'"),
        ({"sizes": ("64x64", "8x8x8")}, "64x64 8x8x8 differ in depth, but all of them"),
        ({"sizes": ("32", "8x8x8")}, "a single width gives 2 layers"),
        ({"capacity": 2000}, r"capacity 2000 is less than n_envs \* n_steps = 2048"),
        ({"capacity": 2048, "minibatch_size": 4096}, "less than minibatch_size = 4096"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        StudentConfig(**settings)
    assert "\n" not in str(refused.value)


def test_settings_of_students_do_not_load_torch() -> None:
    program = "import sys, dpd.agents.config; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout == "False\n", found.stderr
