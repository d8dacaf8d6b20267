"""Views: columns, noise, delay and history, of one learner and of several in one stack."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.base import Rollout
from dpd.agents.config import View
from dpd.agents.norm import ObsNorm
from dpd.agents.rng import RowRandom, Stream
from dpd.agents.student import Student
from dpd.agents.student_config import StudentConfig
from dpd.agents.views import Frames, ViewNorm, see_all
from tests.agents.parity import A, O

F64 = torch.float64
PLAIN = View(obs_dim=3, act_dim=2, columns=(0, 2))


def frames_of(*views: View, n_envs: int = 1, seed: int = 0) -> Frames:
    ids = [(seed, peer) for peer in range(len(views))]
    return Frames(views, n_envs, RowRandom(ids, Stream.SENSOR), F64)


def obs_at(t: int) -> Tensor:
    """Return the observation [1, 1, 3] whose numbers are t0, t1, t2."""
    return torch.tensor([[[10.0 * t, 10 * t + 1, 10 * t + 2]]], dtype=F64)


def act_at(t: int) -> Tensor:
    return torch.full((1, 1, 2), 0.1 * t, dtype=F64)


def play(frames: Frames, steps: int, ends: tuple[int, ...] = ()) -> list[list[float]]:
    """Return what is seen at the first and at all later steps; step t leads to obs t."""
    seen = [frames.begin(obs_at(0))]
    for t, noise in enumerate(frames.draw(steps), 1):
        over = torch.tensor([[t in ends]])
        _, obs = frames.advance(obs_at(t), obs_at(t), act_at(t), over, noise)
        seen.append(obs)
    return [x[0, 0, 3:].tolist() for x in seen]


def test_a_view_of_columns_is_these_columns() -> None:
    assert play(frames_of(PLAIN), 2) == [[0, 2], [10, 12], [20, 22]]


def test_a_history_is_stacked_oldest_first_and_begins_with_the_first_frame() -> None:
    seen = play(frames_of(replace(PLAIN, history=3)), 3)
    assert seen == [
        [0, 2, 0, 2, 0, 2],
        [0, 2, 0, 2, 10, 12],
        [0, 2, 10, 12, 20, 22],
        [10, 12, 20, 22, 30, 32],
    ]


def test_a_history_never_reaches_into_the_episode_before() -> None:
    # the episode ends with step 2, so its last observation is the first of the next
    seen = play(frames_of(replace(PLAIN, history=2)), 3, ends=(2,))
    assert seen == [[0, 2, 0, 2], [0, 2, 10, 12], [20, 22, 20, 22], [20, 22, 30, 32]]


def test_the_last_observation_of_an_episode_has_the_episode_behind_it() -> None:
    frames = frames_of(replace(PLAIN, history=2))
    frames.begin(obs_at(0))
    over = torch.tensor([[True]])
    last, first = frames.advance(obs_at(1), obs_at(7), act_at(1), over, None)
    assert last[0, 0].tolist() == [10, 11, 12, 0, 2, 10, 12]
    assert first[0, 0].tolist() == [70, 71, 72, 70, 72, 70, 72]


def test_a_delay_shows_the_observation_of_so_many_steps_before() -> None:
    seen = play(frames_of(replace(PLAIN, delay=2)), 4)
    assert seen == [[0, 2], [0, 2], [0, 2], [10, 12], [20, 22]]


def test_the_previous_action_is_0_at_first_and_not_late() -> None:
    # the observation before is two steps old: with H = 2 and a delay of 1, frames t - 2 and t - 1,
    # with the actions that led to t - 1 and t
    view = replace(PLAIN, prev_action=True, history=2, delay=1)
    seen = play(frames_of(view), 3, ends=(3,))
    expected = [
        [0, 2, 0, 0, 0, 2, 0, 0],
        [0, 2, 0, 0, 0, 2, 0.1, 0.1],
        [0, 2, 0.1, 0.1, 10, 12, 0.2, 0.2],
        [30, 32, 0, 0, 30, 32, 0, 0],
    ]
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(expected))


def test_a_previous_action_is_the_one_that_the_environment_took() -> None:
    frames = frames_of(replace(PLAIN, prev_action=True))
    frames.begin(obs_at(0))
    over = torch.tensor([[False]])
    act = torch.tensor([[[-3.0, 0.5]]], dtype=F64)
    _, obs = frames.advance(obs_at(1), obs_at(1), act, over, None)
    assert obs[0, 0, 3:].tolist() == [10, 12, -1, 0.5]


def test_a_frame_keeps_its_noise_while_it_is_seen_and_the_raw_observation_has_none() -> None:
    noisy = replace(PLAIN, history=2, noise=(0.5, 0.0))
    frames = frames_of(noisy)
    before = frames.begin(obs_at(0))
    (noise,) = frames.draw(1)
    _, after = frames.advance(obs_at(1), obs_at(1), act_at(1), torch.tensor([[False]]), noise)
    assert before[0, 0, :3].tolist() == [0, 1, 2] and after[0, 0, :3].tolist() == [10, 11, 12]
    assert after[0, 0, 3] == before[0, 0, 5] != 0  # the first frame, one step later
    assert after[0, 0, 5] != 10
    assert after[0, 0, 4] == 2 and after[0, 0, 6] == 12  # no noise on the other column


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    frames = frames_of(replace(PLAIN, noise=(0.5, 0.0)), n_envs=5000)
    obs = frames.begin(obs_at(1).expand(1, 5000, 3))[0, :, 3:]
    # a sample deviation of 5000 numbers is off by 1 % on average
    assert obs[:, 0].std() == pytest.approx(0.5, rel=0.05)
    assert obs[:, 0].mean() == pytest.approx(10, abs=0.03)


def test_noise_of_a_learner_is_the_same_beside_others_that_see_more() -> None:
    view = replace(PLAIN, noise=(0.5, 0.1))
    wide = replace(PLAIN, columns=(0, 1, 2), noise=(1.0, 1.0, 1.0), history=3)
    alone, together = frames_of(view), frames_of(view, wide)
    obs = obs_at(3)
    seen = together.begin(obs.expand(2, 1, 3))
    assert torch.equal(alone.begin(obs)[0, 0, 3:], seen[0, 0, 3:5])
    assert not seen[0, 0, 5:].any()  # padding


def test_frames_are_restored_with_their_noise_and_their_generator() -> None:
    view = replace(PLAIN, history=3, noise=(0.5, 0.1))
    whole, resumed = frames_of(view), frames_of(view, seed=9)
    play(whole, 2)
    resumed.load_state({k: v.clone() for k, v in whole.state().items()})
    assert torch.equal(resumed.widen(obs_at(2)), whole.widen(obs_at(2)))
    assert play(resumed, 2) == play(whole, 2)


def test_whole_frames_tell_what_any_view_sees() -> None:
    view = replace(PLAIN, prev_action=True, history=2, delay=1)
    whole, own = frames_of(see_all(3, 2, 4)), frames_of(view)
    found = play(whole, 5, ends=(3,))
    places = view.places(4)
    assert [[x[i] for i in places] for x in found] == play(own, 5, ends=(3,))


# --- The normaliser ---


def drawn(n: int, k: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, k, dim, dtype=F64, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def test_all_frames_share_the_statistics_of_single_observations() -> None:
    view = replace(PLAIN, history=2)
    raw = drawn(1, 50, 3)
    plain, norm = ObsNorm(1, 3, F64), ViewNorm([view], F64)
    plain.update(raw)
    norm.update(torch.cat([raw, torch.zeros(1, 50, 4)], -1))
    other = drawn(1, 50, 3, seed=1)
    wide = torch.cat([raw, other[..., [0, 2]], raw[..., [0, 2]]], -1)
    expected = torch.cat([plain(other)[..., [0, 2]], plain(raw)[..., [0, 2]]], -1)
    assert torch.equal(norm(wide), expected)


def test_the_noise_widens_the_scale_of_its_column() -> None:
    # variances 1 at first: with noise of deviation 2, 1 + 4 = 5
    norm = ViewNorm([replace(PLAIN, noise=(2.0, 0.0))], F64)
    assert norm.scale[0, 0].tolist() == pytest.approx([5**-0.5, 1])


def test_actions_and_padding_are_not_normalised() -> None:
    norm = ViewNorm([replace(PLAIN, prev_action=True), PLAIN], F64)
    norm.update(drawn(2, 50, 3 + 4))
    assert norm.mean[0, 0, 2:].tolist() == [0, 0] == norm.mean[1, 0, 2:].tolist()
    assert norm.scale[0, 0, 2:].tolist() == [1, 1] == norm.scale[1, 0, 2:].tolist()


def test_a_normaliser_starts_from_the_frames_of_a_policy_file() -> None:
    view = replace(PLAIN, history=2, noise=(0.3, 0.0), prev_action=True)
    norm, other = ViewNorm([view], F64), ViewNorm([view], F64)
    norm.update(drawn(1, 50, 3 + view.dim))
    saved = norm.export(0)
    assert saved["obs_mean"].shape == saved["obs_scale"].shape == (1, 4)
    other.start_from(0, saved)
    torch.testing.assert_close(other.mean, norm.mean)
    torch.testing.assert_close(other.scale, norm.scale)


# --- Learners ---

SMALL: dict[str, Any] = {"n_envs": 2, "n_steps": 6, "minibatch_size": 8, "capacity": 40}
CONFIG = StudentConfig(**SMALL, hidden=(8, 8), lr=1e-2)
SEEDS = [(0, 0), (0, 1), (0, 2), (0, 3)]
VIEWS = [
    View(obs_dim=O, act_dim=A, columns=(0, 2), noise=(0.1, 0.2)),
    View(obs_dim=O, act_dim=A, columns=(0, 2), history=4, noise=(0.1, 0.2)),
    View(obs_dim=O, act_dim=A, columns=(1,), history=2, prev_action=True),
    View(obs_dim=O, act_dim=A, columns=tuple(range(O)), delay=3),
]


def collected(agent: Student, frames: Frames, obs: Tensor, seed: list[int]) -> Rollout:
    """Return a rollout of random observations, actions and ends, one generator per learner."""
    rollout = agent.new_rollout()
    for t, noise in enumerate(frames.draw(CONFIG.n_steps)):
        own = [torch.Generator().manual_seed(100 * s + t) for s in seed]

        def each(*shape: int, own: list[torch.Generator] = own) -> Tensor:
            return torch.stack([torch.randn(*shape, generator=g, dtype=F64) for g in own])

        act, raw, done = each(2, A), each(2, O), each(2) > 1
        rollout.obs[:, t], rollout.act[:, t], rollout.truncated[:, t] = obs, act, done
        rollout.next_obs[:, t], obs = frames.advance(raw, raw, act, done, noise)
    return rollout


def taught(agent: Student, row_seeds: list[int]) -> None:
    """Collect, take five steps towards sin(3 raw obs), four times."""
    frames = Frames(agent.views, 2, RowRandom(agent.explore._ids, Stream.SENSOR), F64)
    obs = frames.begin(torch.zeros(agent.n_learners, 2, O, dtype=F64))
    for i in range(4):
        rollout = collected(agent, frames, obs, [s + i for s in row_seeds])
        batch = agent.prepare(rollout)
        agent.update(batch, 0.0)
        for _ in range(5):
            dist = agent.dist(agent.obs_norm(batch.raw_obs))
            loss = -dist.logp((3 * batch.raw_obs[..., :A]).sin()).mean(1)
            agent.optimizer.step(torch.autograd.grad(loss.sum(), agent.nets.flat)[0])
        agent.observe(rollout)


def test_learners_of_unlike_views_together_equal_each_alone() -> None:
    together = Student(CONFIG, O, A, SEEDS, F64, views=VIEWS)
    row_seeds = [100, 200, 300, 400]
    taught(together, row_seeds)
    for n, ids in enumerate(SEEDS):
        alone = Student(CONFIG, O, A, [ids], F64, views=[VIEWS[n]])
        assert alone.nets.padding is None
        taught(alone, row_seeds[n : n + 1])
        for name, tensor in alone.export(0).items():
            found = together.export(n)[name]
            torch.testing.assert_close(found, tensor, rtol=0, atol=1e-12)
    assert together.nets.padding is not None
    assert not together.nets.flat[together.nets.padding].any()
