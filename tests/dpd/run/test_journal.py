"""A replay on disk: every checkpoint adds what is new, and nothing is written twice."""

import pytest
import torch

from dpd.agents.base import Rollout
from dpd.agents.offpolicy_config import SACConfig
from dpd.agents.replay import Replay
from dpd.run.checkpoint import BadFile, CheckpointInfo, Checkpoints, JournalFiles

CONFIG = SACConfig(capacity=10, n_envs=1, n_steps=2, minibatch_size=1, learning_starts=0)


def replay() -> Replay:
    return Replay(CONFIG, 2, obs_dim=1, act_dim=1, dtype=torch.float32)


def add(memory: Replay, n_steps: int) -> None:
    """Add steps that are numbered on through the run."""
    rollout = Rollout(2, n_steps, 1, 1, 1)
    numbers = torch.arange(memory.total, memory.total + n_steps, dtype=torch.float32)
    rollout.obs[:] = numbers.view(1, -1, 1, 1)
    memory.push(rollout)


def numbers(memory: Replay) -> list[float]:
    """Return which steps are held, oldest first."""
    return memory.since(0)[0, :, 0, 0].tolist()


def facts(step: int, score: float | None = None) -> CheckpointInfo:
    return CheckpointInfo(
        step=step, iteration=step, score=score, rollbacks=0, threads=1, versions={}
    )


def names(kept: Checkpoints) -> list[str]:
    return [f"{s.begin}-{s.end}" for s in JournalFiles(kept.dir).segments()]


def test_each_checkpoint_writes_only_what_is_new_and_keeps_what_is_still_held(tmp_path):
    memory = replay()
    kept = Checkpoints(tmp_path, 1, None, [memory])
    for many in (3, 4, 2, 6):
        add(memory, many)
        kept.save({}, facts(memory.total))
    # 15 steps, of which 5 to 14 are held: the file of 0-3 went with the checkpoint before
    assert names(kept) == ["3-7", "7-9", "9-15"]
    again = replay()
    kept = Checkpoints(tmp_path, kept.keep, None, [again])
    found = kept.load_newest(lambda state: None)
    assert found is not None and found[1] == []
    assert numbers(again) == numbers(memory) == [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    for each in (memory, again):
        add(each, 4)
    assert numbers(again) == numbers(memory) == [9, 10, 11, 12, 13, 14, 15, 16, 17, 18]


def test_the_best_checkpoint_keeps_its_own_part_of_the_replay(tmp_path):
    memory = replay()
    kept = Checkpoints(tmp_path, 1, None, [memory])
    add(memory, 4)
    kept.save({}, facts(4, score=9.0))
    for _ in range(4):
        add(memory, 6)
        kept.save({}, facts(memory.total, score=1.0))
    # the newest holds 18 to 27; the best, at 4, needs its own
    assert names(kept) == ["0-4", "16-22", "22-28"]


def test_going_back_drops_what_came_after(tmp_path):
    memory = replay()
    kept = Checkpoints(tmp_path, 3, None, [memory])
    for many in (4, 4):
        add(memory, many)
        kept.save({}, facts(memory.total))
    kept.files()[0].write_bytes(b"")  # broken: the one before it is taken
    again = replay()
    kept = Checkpoints(tmp_path, kept.keep, None, [again])
    found = kept.load_newest(lambda state: None)
    assert found is not None and found[0].step == 4 and len(found[1]) == 1
    assert numbers(again) == [0, 1, 2, 3] and names(kept) == ["0-4"]
    add(again, 3)
    kept.save({}, facts(7))
    assert names(kept) == ["0-4", "4-7"]


def test_a_replay_that_lacks_a_file_is_refused(tmp_path):
    memory = replay()
    kept = Checkpoints(tmp_path, 1, None, [memory])
    for _ in range(2):
        add(memory, 3)
        kept.save({}, facts(memory.total))
    (kept.dir / JournalFiles(kept.dir).segments()[0].name).unlink()
    with pytest.raises(BadFile, match="lacks 1 replay files"):
        Checkpoints(tmp_path, 1, None, [replay()]).load_newest(lambda state: None)
