"""Evaluation: every environment counts one episode, and one only."""

import dataclasses
from typing import cast

import numpy as np
import pytest
import torch

from dpd.agents.ppo import PPO
from dpd.agents.ppo_config import PPOConfig
from dpd.cli import parse_train
from dpd.envs.base import Env, EnvSpec, Step, UnsupportedEnv
from dpd.envs.make import make
from dpd.errors import BadInput
from dpd.policies import policyfile
from dpd.policies.policyfile import Policy
from dpd.run.episodes import (
    EvaluationStopped,
    episode_seeds,
    evaluate_policy,
    evaluate_together,
    run_episodes,
)
from dpd.run.policies import PolicySaver
from dpd.run.sources import Place
from dpd.run.video import record_video
from tests.toy.policies import saved


class Countdown:
    """Environment m ends after m + 1 steps of reward 1, by termination if m is even."""

    def __init__(self, n_envs):
        self.n_envs = n_envs
        bound = np.ones(1)
        self.spec = EnvSpec("Countdown", "test", 1, 1, -bound, bound, False, max_steps=n_envs)
        self.lengths = torch.arange(n_envs) + 1

    def reset(self):
        self.t = torch.zeros(self.n_envs, dtype=torch.long)
        return self.t.float().unsqueeze(1)

    def step(self, act):
        self.t += 1
        over = self.t >= self.lengths
        even = torch.arange(self.n_envs) % 2 == 0
        self.t = torch.where(over, 0, self.t)
        obs = self.t.float().unsqueeze(1)
        ones = torch.ones(self.n_envs)
        return Step(obs, obs, ones, over & even, over & ~even, ones.bool())


def test_each_environment_counts_its_first_episode_only():
    outcome = run_episodes(cast(Env, Countdown(6)), lambda obs: torch.zeros(2, 3, 1), 2)
    # the short ones go on into further episodes until the longest ends; those don't count
    assert outcome.returns.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert outcome.lengths.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_an_episode_that_passes_its_time_limit_is_an_error():
    env = Countdown(6)  # the last environment ends after 6 steps
    env.spec = dataclasses.replace(env.spec, max_steps=5)
    with pytest.raises(UnsupportedEnv, match="did not end its episode at its time limit of 5"):
        run_episodes(cast(Env, env), lambda obs: torch.zeros(2, 3, 1), 2)


def test_a_stop_ends_an_evaluation_at_the_next_step():
    asked = iter([False, False, True])
    steps = []

    def act(obs):
        steps.append(obs)
        return torch.zeros(2, 3, 1)

    with pytest.raises(EvaluationStopped):
        run_episodes(cast(Env, Countdown(6)), act, 2, lambda: next(asked))
    assert len(steps) == 2


class Losing(Countdown):
    """As `Countdown`, but the last step of odd environments is lost, and its reward a NaN."""

    def step(self, act):
        obs, next_obs, reward, terminated, truncated, valid = super().step(act)
        return Step(
            obs,
            next_obs,
            torch.where(truncated, torch.nan, reward),
            terminated,
            truncated,
            valid & ~truncated,
        )


def test_a_lost_step_counts_neither_in_the_return_nor_in_the_length():
    outcome = run_episodes(cast(Env, Losing(4)), lambda obs: torch.zeros(1, 4, 1), 1)
    # environments 0 and 2 terminate after 1 and 3 steps; 1 and 3 lose their 2nd and 4th step
    assert outcome.returns.tolist() == [[1, 1, 3, 3]]
    assert outcome.lengths.tolist() == [[1, 1, 3, 3]]


def test_an_unstable_simulation_does_not_count_in_an_evaluation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves a log file
    env = make("HalfCheetah-v5", 1, [0])
    env.reset()
    state = env.snapshot()
    state["physics"][0, 1], state["marker"][0] = 300.0, 300.0
    state["physics"][0, 1 + 9 + 2] = 1e11  # after time and 9 positions come the velocities
    monkeypatch.setattr(env, "reset", lambda: env.restore(state))
    with pytest.warns(RuntimeWarning, match="became unstable"):
        outcome = run_episodes(env, lambda obs: torch.zeros(1, 1, 6), 1)
    # going back from x = 300 to 0 in 0.05 s would be rewarded with -6000
    assert outcome.returns.tolist() == [[0.0]] and outcome.lengths.tolist() == [[0]]


def test_episodes_are_the_same_for_whoever_is_compared_and_fresh_for_each_purpose():
    assert episode_seeds(0, 5) == episode_seeds(0, 5)
    seen = {s for purpose in range(10) for s in episode_seeds(0, 20, purpose)}
    assert len(seen) == 200
    assert not seen & set(episode_seeds(1, 20))


def test_an_episode_is_the_same_whatever_the_threads_and_the_episodes_beside_it(tmp_path):
    # In float32 MKL rounds the fifth of five rows otherwise with two threads than with one, and
    # with 20 rows: 1 of the 5 returns differed then.
    policy = saved(tmp_path, "ppo", "Humanoid-v5", hidden=(256, 256))
    n_threads, found = torch.get_num_threads(), []
    try:
        for threads, episodes in ((1, 5), (2, 5), (1, 20), (2, 20)):
            torch.set_num_threads(threads)
            found += [evaluate_policy(policy, "Humanoid-v5", episodes, 0).returns[0, :5]]
    finally:
        torch.set_num_threads(n_threads)
    other = Policy({k: 0.9 * x for k, x in policy.tensors.items()}, policy.meta)
    found += [evaluate_together([other, policy], "Humanoid-v5", 5, 0)[1].returns[0]]
    for returns in found[1:]:
        np.testing.assert_array_equal(returns, found[0])


def test_a_policy_that_is_given_twice_is_played_once(tmp_path, monkeypatch):
    policy = saved(tmp_path, "ppo", "Hopper-v5")
    older = dataclasses.replace(policy.meta, provenance={"steps": 1})
    best = Policy(policy.tensors, older)
    other = Policy({k: 0.9 * x for k, x in policy.tensors.items()}, policy.meta)
    n_envs = []

    def noting(env_id, n, *args):
        n_envs.append(n)
        return make(env_id, n, *args)

    monkeypatch.setattr("dpd.run.episodes.make", noting)
    one, two, three = evaluate_together([policy, other, best], "Hopper-v5", 4, 0)
    assert n_envs == [8]  # of the 12 episodes, 4 are those of a policy that was given before
    np.testing.assert_array_equal(one.returns, three.returns)
    assert (one.returns != two.returns).any()


def test_evaluations_grow_with_the_budget_and_flags_override_them():
    def plan(steps, *flags):
        return tuple(parse_train(["--total-steps", str(steps), *flags]).evaluation)

    # 50,000 / 64,000 < 1 and 50,000 / 320,000 < 1; 50,000 / 10,000 = 5
    assert plan(50_000) == (1, 1, 5)
    assert plan(200_000) == (3, 1, 20)
    assert plan(200_000, "--algo", "sac") == (12, 1, 20)  # 200,000 / 16,000
    assert plan(2_000_000) == (15, 5, 20)
    assert plan(50_000, "--evals", "7", "--final-episodes", "2") == (7, 1, 2)


def test_acting_repeatably_is_acting_to_the_rounding_of_float32(tmp_path):
    policy = saved(tmp_path, "sac", "Hopper-v5")
    obs = torch.randn(50, 11)
    torch.testing.assert_close(policy.repeatable_mode(obs), policy.mode(obs), rtol=0, atol=2e-6)


def test_a_video_is_an_mp4(tmp_path):
    video = tmp_path / "x.mp4"
    agent = PPO(PPOConfig(), 8, 2, [(0, 0)])
    spec = make("Swimmer-v5", 1, [0]).spec
    # software rendering takes a tenth of a second a frame
    config = parse_train(
        [
            "Swimmer-v5",
            "--peers",
            "1",
            "--method",
            "none",
            "--env-kwargs",
            '{"max_episode_steps": 20}',
        ]
    )
    saver = PolicySaver(tmp_path, config, spec, lambda n: (config.stacks[0], agent.export(n)))
    saver.save_last(0)
    policy = policyfile.load(saver.path(0))
    place = Place("Swimmer-v5", policy.meta.env_kwargs)
    with pytest.raises(BadInput, match=r"writes \.mp4"):
        record_video(policy, place, tmp_path / "x.gif", 0)
    try:
        record_video(policy, place, video, 0)
    except BadInput as error:
        pytest.skip(str(error))  # a machine without a renderer
    assert video.stat().st_size > 1_000
