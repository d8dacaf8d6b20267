from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.agents.base import Rollout
from dpd.agents.offpolicy_config import SACConfig
from dpd.agents.replay import Replay
from dpd.agents.rng import RowRandom, Stream

SEEDS = [(0, 0), (0, 1)]
GAMMA = torch.full((2, 1), 0.5, dtype=torch.float64)


def replay(capacity: int, n_envs: int = 1, n: int = 2, **settings: Any) -> Replay:
    config = SACConfig(
        capacity=capacity,
        n_envs=n_envs,
        n_steps=1,
        minibatch_size=1,
        learning_starts=0,
        **settings,
    )
    return Replay(config, n, 1, 1, torch.float64)


def steps(numbers: Sequence[int], n_envs: int = 1, n: int = 2) -> Rollout:
    """Return steps in which everything tells its number: step t, environment e, row n.

    The observation is 100 n + 10 e + t, its successor 0.5 more; action -t, reward t.
    """
    rollout = Rollout(n, len(numbers), n_envs, 1, 1, torch.float64)
    t = torch.tensor(numbers, dtype=torch.float64).view(1, -1, 1)
    name = 100 * torch.arange(n).view(-1, 1, 1) + 10 * torch.arange(n_envs) + t
    rollout.obs[:], rollout.next_obs[:] = name.unsqueeze(-1), name.unsqueeze(-1) + 0.5
    rollout.act[:], rollout.reward[:] = -t.unsqueeze(-1), t
    return rollout


def everything(memory: Replay, draws: int = 400) -> list[set[float]]:
    """Return the observations each row can draw."""
    idx = memory.draw(RowRandom(SEEDS, Stream.BATCH), draws)
    return [set(row.tolist()) for row in memory.take(idx, GAMMA).obs_act[..., 0]]


def test_a_transition_comes_back_as_it_was() -> None:
    memory, rollout = replay(8), steps([3, 4])
    rollout.terminated[:, 1] = True
    memory.push(rollout)
    got = memory.take(torch.tensor([[0, 1], [1, 0]]), GAMMA)
    assert got.obs_act.tolist() == [[[3, -3], [4, -4]], [[104, -4], [103, -3]]]
    assert got.next_obs.squeeze(-1).tolist() == [[3.5, 4.5], [104.5, 103.5]]
    assert got.reward.tolist() == [[3, 4], [4, 3]]
    assert got.discount.tolist() == [[0.5, 0], [0, 0.5]]  # none behind a terminal state


def test_a_truncated_step_still_counts_on_what_follows() -> None:
    memory, rollout = replay(8), steps([3])
    rollout.truncated[:] = True
    memory.push(rollout)
    assert memory.take(torch.zeros(2, 1, dtype=torch.int64), GAMMA).discount.tolist() == [[0.5]] * 2


def test_the_oldest_steps_make_room_for_new_ones() -> None:
    # a ring of 5 steps, pushed in threes: 0-2, 0-4 and 5 in the place of 0, then 4-8
    memory = replay(5)
    for first, held in ((0, {0, 1, 2}), (3, {1, 2, 3, 4, 5}), (6, {4, 5, 6, 7, 8})):
        memory.push(steps(range(first, first + 3)))
        assert everything(memory) == [held, {100 + t for t in held}]
        assert memory.live.tolist() == [len(held)] * 2


def test_environments_share_a_ring_that_drops_whole_steps() -> None:
    memory = replay(7, n_envs=3)  # two steps of three environments
    memory.push(steps([0, 1], n_envs=3))
    memory.push(steps([2], n_envs=3))
    assert everything(memory)[0] == {1, 11, 21, 2, 12, 22}


def test_what_is_not_valid_is_never_drawn_and_everything_else_is_equally_often() -> None:
    memory = replay(12, n_envs=2)
    for first in (0, 4, 8):  # the second push fills the ring of 6, the third drops what was void
        rollout = steps(range(first, first + 4), n_envs=2)
        rollout.valid[0, 1:3, 0] = False
        rollout.obs[0, 1:3, 0] = torch.nan
        memory.push(rollout)
    # held: steps 6 to 11; row 0 lacks 6, 9 and 10 of environment 0
    expected = {t + 10 * e for t in range(6, 12) for e in range(2)}
    assert everything(memory) == [expected - {6, 9, 10}, {100 + x for x in expected}]
    drawn = memory.draw(RowRandom(SEEDS, Stream.BATCH), 30, 100)
    # 3000 draws of 9 and of 12 samples; five deviations are 5 sqrt(3000 p (1 - p))
    for row, k in zip(drawn, (9, 12), strict=True):
        counts = torch.bincount(row.flatten(), minlength=12)
        spread = 5 * (3000 / k * (1 - 1 / k)) ** 0.5
        assert (counts > 0).sum() == k
        assert (counts[counts > 0] - 3000 / k).abs().max() < spread


def test_a_row_draws_the_same_whoever_stands_beside_it() -> None:
    together, alone = replay(8), replay(8, n=1)
    rollout = steps(range(6))
    rollout.valid[0, 2] = False
    together.push(rollout)
    alone.push(steps(range(6), n=1))
    one = alone.draw(RowRandom(SEEDS[1:], Stream.BATCH), 3, 4)
    assert torch.equal(together.draw(RowRandom(SEEDS, Stream.BATCH), 3, 4)[1:], one)


def n_step_case(end: str) -> tuple[Tensor, ...]:
    """Return reward, discount and successor of three-step returns from steps 0 to 4 of row 0."""
    memory, rollout = replay(20, n_envs=2, n_step=3), steps(range(5), n_envs=2)
    if end == "void":
        rollout.valid[:, 2, 0] = False
        rollout.reward[:, 2, 0] = torch.nan
    elif end:
        getattr(rollout, end)[:, 1, 0] = True
    memory.push(rollout)
    got = memory.take(torch.arange(0, 10, 2).expand(2, -1), GAMMA)  # of environment 0
    return got.reward[0], got.discount[0], got.next_obs[0, :, 0]


def test_three_step_returns_worked_by_hand() -> None:
    # From t: t + (t + 1) / 2 + (t + 2) / 4, then 1/8 of the value of t + 3 (named t + 2.5).
    # From 3 there are two steps only, 3 + 4 / 2 and 1/4; from 4 one.
    reward, discount, successor = n_step_case("")
    assert reward.tolist() == [1.0, 2.75, 4.5, 5.0, 4.0]
    assert discount.tolist() == [0.125, 0.125, 0.125, 0.25, 0.5]
    assert successor.tolist() == [2.5, 3.5, 4.5, 4.5, 4.5]


@pytest.mark.parametrize(("end", "left"), [("terminated", 0.0), ("truncated", 1.0), ("void", 1.0)])
def test_three_step_returns_stop_where_an_episode_does(end: str, left: float) -> None:
    # Step 1 is the last: from 0 the sum is 0 + 1 / 2, from 1 it is 1; what follows counts by
    # 1/4 and 1/2 unless it was terminal. From 2 on all is as before.
    reward, discount, successor = n_step_case(end)
    assert reward[:2].tolist() == [0.5, 1.0]
    assert discount[:2].tolist() == [0.25 * left, 0.5 * left]
    assert successor[:2].tolist() == [1.5, 1.5]
    if end != "void":
        assert reward[2:].tolist() == [4.5, 5.0, 4.0]


def test_three_step_returns_run_over_the_rings_end_but_not_into_its_oldest_steps() -> None:
    memory = replay(4, n_step=3)
    memory.push(steps([0, 1, 2]))
    memory.push(steps([3, 4]))  # slots: 4 1 2 3
    got = memory.take(torch.tensor([[2, 3, 0]] * 2), GAMMA)  # steps 2, 3, 4
    assert got.reward[0].tolist() == [2 + 3 / 2 + 4 / 4, 3 + 4 / 2, 4]
    assert got.next_obs[0, :, 0].tolist() == [4.5, 4.5, 4.5]


@pytest.mark.parametrize("pushes", [1, 2, 4])
def test_a_replay_rebuilt_draws_and_goes_on_alike(pushes: int) -> None:
    def with_gaps(first: int) -> Rollout:
        rollout = steps(range(first, first + 3), n_envs=2)
        rollout.valid[0, 1] = False
        return rollout

    memory, copy = replay(10, n_envs=2, n_step=2), replay(10, n_envs=2, n_step=2)
    for i in range(pushes):
        memory.push(with_gaps(3 * i))
    copy.restart(memory.total - memory.held)
    copy.extend(memory.since(copy.total))
    for _ in range(3):
        idx = memory.draw(RowRandom(SEEDS, Stream.BATCH), 50)
        assert torch.equal(copy.draw(RowRandom(SEEDS, Stream.BATCH), 50), idx)
        for a, b in zip(memory.take(idx, GAMMA), copy.take(idx, GAMMA), strict=True):
            assert torch.equal(a, b)
        for each in (memory, copy):
            each.push(with_gaps(100))


def test_what_was_added_since_a_count_rebuilds_a_replay_piece_by_piece() -> None:
    memory, copy = replay(10, n_envs=2), replay(10, n_envs=2)  # five steps
    for first, many in ((0, 3), (3, 1), (4, 5)):
        memory.push(steps(range(first, first + many), n_envs=2))
        copy.extend(memory.since(copy.total))
        assert copy.total == memory.total
        assert everything(copy) == everything(memory)
    assert memory.since(0)[0, :, 0, 0].tolist() == [4, 5, 6, 7, 8]  # oldest first


def test_rows_of_another_shape_are_refused() -> None:
    memory = replay(10)
    memory.push(steps([0, 1]))
    with pytest.raises(ValueError, match=r"rows of torch\.float64"):
        replay(10, n=1).extend(memory.since(0))
    with pytest.raises(ValueError, match="4 steps for a replay of 3"):
        replay(3).push(steps(range(4)))


def test_memory_is_foretold_by_the_settings() -> None:
    config = SACConfig(capacity=1001, n_envs=2, n_steps=2, learning_starts=0)
    memory = Replay(config, 3, obs_dim=5, act_dim=2, dtype=torch.float32)
    held = memory.rows.nbytes + memory._samples.nbytes
    assert config.replay_bytes(obs_dim=5, act_dim=2, n_learners=3) == held


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells what is resident")
def test_memory_that_was_never_written_is_not_resident() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    before = resident()
    config = SACConfig(capacity=1_000_000)
    memory = Replay(config, 2, obs_dim=50, act_dim=10, dtype=torch.float32)
    assert memory.rows.nbytes > 900e6
    assert resident() - before < 50e6


def test_states_are_counted_back_from_each_learners_newest_valid_one() -> None:
    # a ring of 4 steps: 2 to 5 are held, of row 1 without 4
    memory = replay(4)
    for t in range(6):
        rollout = steps([t])
        rollout.valid[1] = t != 4
        memory.push(rollout)
    who = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 1]])
    back = torch.tensor([[0, 3, 0, 1], [2, 1, 2, 0]])
    found = memory.states(who, back).squeeze(-1)
    assert found.tolist() == [[5, 2, 105, 103], [102, 4, 3, 105]]
