"""Recurrent students: memories along episodes, sequences from the replay, rows of one stack."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.base import LearnerId, Rollout
from dpd.agents.config import View
from dpd.agents.encoders import encode
from dpd.agents.replay import Replay
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.student import ConvolutionalStudent, RecurrentStudent
from dpd.agents.student_config import StudentConfig
from dpd.agents.views import RememberingFrames
from tests.agents.parity import A, O

F64 = torch.float64
SMALL: dict[str, Any] = {
    "n_envs": 2,
    "n_steps": 10,
    "minibatch_size": 12,
    "capacity": 60,
    "lr": 1e-2,
    "hidden": (8, 8),
    "encoder_size": 5,
    "gradient_length": 4,
}
GRU = StudentConfig(**SMALL, encoder="gru")
LSTM = replace(GRU, encoder="lstm")
BOTH = pytest.mark.parametrize("config", [GRU, LSTM], ids=["gru", "lstm"])
SEEDS = [(0, 0), (0, 1), (7, 0), (7, 1)]
ONE = View(obs_dim=O, act_dim=A, columns=(0, 2), noise=(0.1, 0.2))
VIEWS = [ONE, replace(ONE, history=3, prev_action=True)] * 2


class Lesson:
    """Students in episodes of random observations and ends, drawn from one generator for each."""

    def __init__(
        self, config: StudentConfig, views: list[View], ids: list[LearnerId] = SEEDS
    ) -> None:
        self.agent = RecurrentStudent(config, O, A, ids, F64, views=views)
        self.own = [torch.Generator().manual_seed(100 * seed + peer) for seed, peer in ids]
        self.frames = self.agent.new_frames(config.n_envs, RowRandom(ids, Stream.SENSOR))
        self.rng = RowRandom(ids, Stream.TEACHER)
        self.obs = self.frames.begin(self.each(config.n_envs, O))

    def each(self, *shape: int) -> Tensor:
        return torch.stack([torch.randn(*shape, generator=g, dtype=F64) for g in self.own])

    def collect(self) -> Rollout:
        c, rollout = self.agent.config, self.agent.new_rollout()
        for t, noise in enumerate(self.frames.draw(c.n_steps)):
            raw, done = self.each(c.n_envs, O), self.each(c.n_envs) > 1
            act = self.agent.act(self.obs, self.each(c.n_envs, A))
            rollout.obs[:, t], rollout.act[:, t], rollout.truncated[:, t] = self.obs, act, done
            rollout.next_obs[:, t], self.obs = self.frames.advance(raw, raw, act, done, noise)
        return rollout

    def learn(self, iterations: int, steps: int = 5) -> None:
        """Collect and take steps towards sin(3 raw obs), as a method does."""
        agent = self.agent
        for _ in range(iterations):
            rollout = self.collect()
            agent.update(agent.prepare(rollout), 0.0)
            for _ in range(steps):
                obs, _ = agent.replay.draw_sequences(self.rng, 3, agent.sequence_length)
                dist = agent.dist_along(agent.obs_norm(obs))
                loss = -dist.logp((3 * obs[..., :A]).sin()).mean(1)
                agent.optimizer.step(torch.autograd.grad(loss.sum(), agent.nets.flat)[0])
            agent.observe(rollout)


@BOTH
def test_students_of_unlike_sizes_and_histories_together_equal_each_alone(
    config: StudentConfig,
) -> None:
    # 4 iterations of 5 steps: 20
    together = Lesson(replace(config, sizes=("8x8", "6x4")), VIEWS)
    start = together.agent.nets.flat.detach().clone()
    together.learn(4)
    for n, ids in enumerate(SEEDS):
        own = replace(config, hidden=((8, 8), (6, 4))[ids[1]])
        alone = Lesson(own, [VIEWS[n]], [ids])
        assert alone.agent.nets.padding is None
        alone.learn(4)
        for name, tensor in alone.agent.export(0).items():
            found = together.agent.export(n)[name]
            torch.testing.assert_close(found, tensor, rtol=0, atol=1e-12)
        memory = alone.frames.memory[0]
        torch.testing.assert_close(together.frames.memory[n], memory, rtol=0, atol=1e-12)
        assert (together.agent.nets.flat[n] - start[n]).abs().max() > 0.05
    padding = together.agent.nets.padding
    assert padding is not None and not together.agent.nets.flat[padding].any()


@BOTH
def test_the_memory_goes_on_from_step_to_step_and_is_0_where_an_episode_begins(
    config: StudentConfig,
) -> None:
    lesson = Lesson(config, [ONE], [(0, 0)])
    agent, size = lesson.agent, config.memory_dim
    rollouts = [lesson.collect() for _ in range(3)]
    obs = torch.cat([r.obs for r in rollouts], 1)[0]  # [T, E, O + F + S]
    done = torch.cat([r.done for r in rollouts], 1)[0]
    assert obs.shape[-1] == O + 2 + size and done.any() and not done.all()
    memory = torch.zeros(1, 2, size, dtype=F64)
    for of_step, over in zip(obs, done, strict=True):
        torch.testing.assert_close(of_step[:, -size:], memory[0], rtol=0, atol=1e-12)
        x = agent.obs_norm.normalised(of_step[None, :, O:-size])
        memory = encode(agent.encoder, agent.nets.views, x, memory)
        memory[0, over] = 0
    after = torch.cat([r.next_obs for r in rollouts], 1)[0]
    assert (after[..., -size:][done] != 0).all()  # the successor still has the episode's memory


def test_a_single_state_says_how_its_learner_acts() -> None:
    lesson = Lesson(GRU, [ONE], [(0, 0)])
    rollout = lesson.collect()
    one_by_one = lesson.agent.ask(rollout.flat_obs()).dist.mean
    obs = rollout.obs.transpose(1, 2).flatten(1, 2)  # environment by environment [N, E T, O]
    along = RecurrentStudent(replace(GRU, gradient_length=10), O, A, [(0, 0)], F64, views=[ONE])
    found = along.dist_along(along.obs_norm(obs)).mean
    expected = one_by_one.unflatten(1, (10, 2)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_gradients_go_back_through_a_sequence_and_not_into_the_memory_before_it() -> None:
    lesson = Lesson(GRU, [ONE], [(0, 0)])
    lesson.agent.prepare(lesson.collect())
    joint = lesson.agent.obs_norm(lesson.agent.replay.draw_sequences(lesson.rng, 2, 4)[0])
    joint[..., 2:] = 0.3  # no episode begins
    joint.requires_grad_()
    lesson.agent.dist_along(joint).mean[0, 3].sum().backward()
    moved = joint.grad[0].abs()  # type: ignore[index]
    # the action of step 3 depends on what was seen in steps 0 to 3 of its own sequence
    assert (moved[:4, :2].sum(1) > 0).all() and not moved[4:].any()


@BOTH
def test_going_on_from_a_state_equals_never_having_stopped(config: StudentConfig) -> None:
    straight, first = Lesson(config, VIEWS), Lesson(config, VIEWS)
    straight.learn(3)
    first.learn(2)
    second = Lesson(config, VIEWS)
    for name in ("agent", "frames", "rng"):
        state = {k: x.clone() for k, x in getattr(first, name).state().items()}
        getattr(second, name).load_state(state)
    second.agent.replay.extend(first.agent.replay.since(0))
    second.own, second.obs = first.own, first.obs
    second.learn(1)
    for name in ("agent", "frames"):
        expected, found = (getattr(x, name).state() for x in (straight, second))
        for key, x in expected.items():
            assert torch.equal(x, found[key]), key


def test_students_with_convolutions_together_equal_each_alone() -> None:
    config = StudentConfig(lr=1e-2, hidden=(8, 8), encoder="tcn", encoder_size=4)
    view = replace(ONE, history=4, prev_action=True)
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(4, 30, O + view.dim, dtype=F64, generator=generator)

    def taught(ids: list[LearnerId], obs: Tensor) -> ConvolutionalStudent:
        agent = ConvolutionalStudent(config, O, A, ids, F64, views=[view] * len(ids))
        for _ in range(20):
            dist = agent.dist(agent.obs_norm(obs))
            loss = -dist.logp((3 * obs[..., :A]).sin()).mean(1)
            agent.optimizer.step(torch.autograd.grad(loss.sum(), agent.nets.flat)[0])
        return agent

    together = taught(SEEDS, obs)
    for n, ids in enumerate(SEEDS):
        alone = taught([ids], obs[n : n + 1])
        torch.testing.assert_close(together.nets.flat[n], alone.nets.flat[0], rtol=0, atol=1e-12)
        kernel = alone.export(0)["encoder.conv1.weight"]
        assert kernel.shape == (3 * 4, 4)


# --- Sequences ---


def counted(steps: int, capacity: int = 60) -> Replay:
    """Return a replay of two learners; observations are learner, environment and step."""
    config = replace(GRU, capacity=capacity)
    replay = Replay(config, 2, 3, 1, F64, has_next=False)
    for begin in range(0, steps, 10):
        rollout = Rollout(2, 10, 2, 3, 1, F64)
        for i in range(2):
            rollout.obs[i, ..., 0] = i
            rollout.obs[:, :, i, 1] = i
        rollout.obs[..., 2] = torch.arange(begin, begin + 10).view(1, 10, 1)
        rollout.valid[0, 3, 1] = False
        replay.push(rollout)
    return replay


def test_sequences_are_successive_steps_of_one_environment() -> None:
    # 60 states are 30 steps of two environments: of 50 steps, 20 to 49 are left in the ring
    obs, valid = counted(50).draw_sequences(RowRandom([(0, 0), (0, 1)], Stream.BATCH), 500, 4)
    parts = obs.unflatten(1, (500, 4))
    assert (parts[0, ..., 0] == 0).all() and (parts[1, ..., 0] == 1).all()
    assert (parts[..., 1] == parts[:, :, :1, 1]).all()
    assert torch.equal(parts[..., 2] - parts[:, :, :1, 2], torch.arange(4.0).expand(2, 500, 4))
    begins = parts[0, :, 0, 2]
    assert set(begins.tolist()) == set(range(20, 47))  # 46 to 49 is the last
    assert set(parts[0, :, 0, 1].tolist()) == {0, 1}
    # of the first learner, the fourth step of each iteration is invalid in environment 1
    bad = (obs[0, :, 1] == 1) & (obs[0, :, 2] % 10 == 3)
    assert torch.equal(valid[0], ~bad) and valid[1].all()


def test_recent_sequences_are_of_the_newest_steps() -> None:
    rng = RowRandom([(0, 0), (0, 1)], Stream.BATCH)
    obs, _ = counted(50).draw_sequences(rng, 200, 4, recent=10)
    assert set(obs[0, :, 2].tolist()) == set(range(40, 50))
    with pytest.raises(ValueError, match="sequences of 11 steps from the 10 that are stored"):
        counted(10).draw_sequences(rng, 1, 11)


def test_the_memory_of_a_run_is_foretold_by_the_settings() -> None:
    agent = Lesson(LSTM, [ONE], [(0, 0), (0, 1)][:1]).agent
    held = agent.replay.rows.to(torch.float32).nbytes + agent.replay._samples.nbytes
    # three observations, two of which are seen, and twice five numbers of memory
    assert LSTM.replay_bytes(obs_dim=3 + 2 + 10, act_dim=A, n_learners=1) == held


# --- Settings ---

BAD: dict[str, dict[str, Any]] = {
    "gradient_length does nothing without --encoder gru": {"gradient_length": 5},
    "encoder_size does nothing without --encoder gru": {"encoder_size": 5},
    "encoder_size must be positive": {"encoder": "gru", "encoder_size": 0},
    "gradient_length must be positive": {"encoder": "gru", "gradient_length": 0},
    "gradient_length 15 is more than n_steps 10": {"encoder": "gru", "n_steps": 10},
    "gradient_length 15 is more than minibatch_size 8": {"encoder": "lstm", "minibatch_size": 8},
}


@pytest.mark.parametrize(("message", "settings"), BAD.items(), ids=BAD)
def test_settings_that_make_no_sense_are_refused(message: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        StudentConfig(**settings)
    assert "\n" not in str(refused.value)


def test_a_recurrent_student_needs_a_view() -> None:
    with pytest.raises(ValueError, match="need its settings and a view"):
        RecurrentStudent(GRU, O, A, [(0, 0)])


def test_frames_remember_by_the_function_that_they_are_given() -> None:
    # the memory after a step is the memory before it plus what was seen
    rng = RowRandom([(0, 0)], Stream.SENSOR)
    view = View(obs_dim=2, act_dim=1, columns=(1,))
    frames = RememberingFrames([view], 1, rng, lambda seen, memory: memory + seen, 1, F64)

    def at(x: float) -> Tensor:
        return torch.tensor([[[0.0, x]]], dtype=F64)

    act, no, yes = torch.zeros(1, 1, 1, dtype=F64), torch.tensor([[False]]), torch.tensor([[True]])
    assert frames.begin(at(1)).flatten().tolist() == [0, 1, 1, 0]
    assert frames.advance(at(2), at(2), act, no, None)[1].flatten().tolist() == [0, 2, 2, 1]
    last, first = frames.advance(at(5), at(7), act, yes, None)
    assert last.flatten().tolist() == [0, 5, 5, 3]
    assert first.flatten().tolist() == [0, 7, 7, 0]
