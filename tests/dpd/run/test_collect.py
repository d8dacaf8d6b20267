"""Returns and lengths of the episodes that ended, worked out by hand."""

import pytest
import torch

from dpd.agents.base import Rollout
from dpd.run.collect import EpisodeStatistics
from tests.toy.meta_device import META, Elsewhere


def rollout(rewards: list[list[float]], ends: list[list[int]]) -> Rollout:
    """Return one learner's rollout [T][E]."""
    made = Rollout(1, len(rewards), len(rewards[0]), 1, 1)
    made.reward[0] = torch.tensor(rewards)
    made.truncated[0] = torch.tensor(ends).bool()
    return made


def test_an_episode_counts_when_it_ends_wherever_it_began() -> None:
    stats = EpisodeStatistics(1, 2)
    assert stats.metrics()["train/return"].isnan().all()
    # the first environment's episodes: 1 + 2, then 4 ...; the second's: 10, 20, 40 ...
    stats.add(rollout([[1, 10], [2, 20], [4, 40]], [[0, 0], [1, 0], [0, 0]]))
    assert stats.metrics()["train/return"].item() == 3
    # ... + 8, after 2 steps; ... + 80, after 4 steps; then 16 and 160, which run on
    stats.add(rollout([[8, 80], [16, 160]], [[1, 1], [0, 0]]))
    found = stats.metrics()
    assert found["train/return"].item() == pytest.approx((3 + 12 + 150) / 3)
    assert found["train/length"].item() == pytest.approx((2 + 2 + 4) / 3)
    assert (stats.ret.tolist(), stats.length.tolist()) == ([[16, 160]], [[1, 1]])


def test_a_step_that_was_none_has_no_reward_and_no_length() -> None:
    stats, made = EpisodeStatistics(1, 1), rollout([[1], [5], [2]], [[0], [0], [1]])
    made.valid[0, 1] = False
    stats.add(made)
    assert [x.item() for x in stats.metrics().values()] == [3, 2]


def test_the_last_episodes_count_and_at_least_one_of_every_environment() -> None:
    stats = EpisodeStatistics(1, 1, window=2)
    stats.add(rollout([[1], [2], [4]], [[1], [1], [1]]))
    assert stats.metrics()["train/return"].item() == 3  # of 2 and 4
    stats.add(rollout([[8]], [[1]]))
    assert stats.metrics()["train/return"].item() == 6  # of 4 and 8
    many = EpisodeStatistics(1, 30, window=2)
    many.add(rollout([list(range(30))], [[1] * 30]))
    assert many.metrics()["train/return"].item() == 14.5  # (0 + 29) / 2


def test_episodes_that_were_shortened_do_not_count() -> None:
    # the first environment's first episode ends at step 2 and its second at 3; the second's first
    # goes on into the next rollout
    stats = EpisodeStatistics(1, 2)
    stats.skip_running()
    stats.add(rollout([[1, 10], [2, 20], [4, 40]], [[0, 0], [1, 0], [1, 0]]))
    assert stats.metrics()["train/return"].item() == 4
    assert stats.skipped.tolist() == [[False, True]]
    resumed = EpisodeStatistics(1, 2)
    resumed.load_state(stats.state())
    for each in (stats, resumed):
        each.add(rollout([[8, 80], [16, 160]], [[0, 1], [1, 1]]))
        # 8 + 16 and 160; not 10 + 20 + 40 + 80
        assert each.metrics()["train/return"].item() == pytest.approx((4 + 24 + 160) / 3)
        assert each.metrics()["train/length"].item() == pytest.approx((1 + 2 + 1) / 3)
    stats.skip_running()
    stats.restart()  # all new episodes are whole
    assert not stats.skipped.any()


def test_nothing_waits_for_a_device() -> None:
    with Elsewhere():
        stats = EpisodeStatistics(2, 3, META)
        stats.add(Rollout(2, 4, 3, 1, 1, device=META))
        assert stats.metrics()["train/return"].device == META
