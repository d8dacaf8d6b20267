"""Scaffolding: the guide finds what is too hard, and the student does the rest better."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor

from dpd.agents.dist import DiagGaussian
from dpd.distill.scaffold import Scaffold
from dpd.distill.targets import distance
from dpd.distill.teaching_config import ScaffoldConfig
from tests.toy.classroom import Classroom, Function, network

SIZES = ("2", "4", "8")
GROUPS = 2
F64 = torch.float64


def states(rng: torch.Generator, k: int) -> Tensor:
    """Draw states of a cube [k, 3]."""
    return torch.rand(k, 3, generator=rng) * 2 - 1


def is_hard(obs: Tensor) -> Tensor:
    """Return which fifth of the states has an oscillating teacher."""
    return obs[..., 0] > 0.6


def wavy(obs: Tensor) -> Tensor:
    """Return a teacher's action: one unit of tanh, but waves on the hard states [..., 1]."""
    easy = 0.8 * torch.tanh(2 * obs[..., 1] - obs[..., 2])
    waves = torch.sin(12 * obs[..., 1] + 8 * obs[..., 2])
    return 0.9 * torch.where(is_hard(obs), waves, easy).unsqueeze(-1)


def taught(config: ScaffoldConfig, iterations: int, groups: int = GROUPS) -> Classroom:
    """Return students of three sizes, after so many iterations."""
    teacher = Function(wavy, 3, 1)
    room = Classroom(config, teacher, states, groups, hidden=(8,), sizes=SIZES, lr=3e-3)
    room.teach(iterations)
    return room


def auc(score: Tensor, label: Tensor) -> float:
    """Return the chance that a labelled state scores above another (Mann and Whitney)."""
    rank = torch.from_numpy(rankdata(score.numpy()))
    n, m = int(label.sum()), int((~label).sum())
    return float((rank[label].sum() - n * (n + 1) / 2) / (n * m))


def test_the_guide_finds_the_hard_states_and_the_student_gets_the_easy_ones_right():
    # Section 4's small system: 20 % of the states are beyond 2, 4 and 8 units.
    plain = taught(ScaffoldConfig(warm_up=1.0), 8)
    helped = taught(ScaffoldConfig(guide_lr=3e-3), 8)
    probe = states(torch.Generator().manual_seed(99), 2000)
    obs, hard = probe.expand(GROUPS * len(SIZES), -1, -1), is_hard(probe)
    error = [(room.agent.mode(obs) - wavy(obs)).square().squeeze(-1) for room in (plain, helped)]
    for n in range(len(obs)):
        easy = [float(e[n, ~hard].mean()) for e in error]
        assert easy[1] <= 0.5 * easy[0], (n, easy)
    agree = [(e.sqrt() <= 0.1).double().mean(1) for e in error]
    assert bool((agree[1] > agree[0]).all())
    method = helped.method
    with torch.no_grad():
        log_g = method._log_g(method._lesson(obs))
    assert min(auc(row, hard) for row in log_g) >= 0.9


def room(dtype: torch.dtype = F64, groups: int = 2, first: int = 0, **settings) -> Classroom:
    """Return a few small students of a bent teacher, in double precision."""
    config = ScaffoldConfig(steps=4, guide_steps=3, guide_hidden=(8,), **settings)
    small = {"hidden": (6,), "sizes": ("6", "3"), "minibatch_size": 32}
    return Classroom(config, network(3, 2, (16,), 2.0), states, groups, dtype, first, **small)


def test_without_a_guide_it_is_gaussian_likelihood():
    # g = 0: the same gradient of the actor as imitation by nll with the deviation held at std.
    with_label = room(warm_up=1.0, aux=0.0, label="sample")
    method, agent = with_label.method, with_label.agent
    assert isinstance(method, Scaffold)
    agent.nets.views["log_std"].fill_(torch.tensor(0.2, dtype=F64).log())
    batch = with_label.collect()
    method.on_batch(batch, 0.0)
    before = method.rng.state()
    lesson = method._lesson(batch.raw_obs)
    method.rng.load_state(before)
    targets = method._targets(batch.raw_obs)
    assert torch.equal(lesson.label, targets.sample)
    ours = method._student_loss(lesson, True)
    theirs = distance("nll", agent.dist(targets.obs), targets).mean(1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(loss.sum(), agent.nets.flat)[0] for loss in (ours, theirs)]
    views = agent.nets.views
    size = sum(view[0].numel() for name, view in views.items() if name.startswith("actor"))
    torch.testing.assert_close(grads[0][:, :size], grads[1][:, :size], rtol=0, atol=1e-12)
    assert not bool(grads[0][:, size:].any())  # the deviation learns from none of it


def test_while_it_warms_up_the_guide_stays_as_it_is():
    some = room(warm_up=0.5)
    before = some.method.guide.flat.detach().clone()
    metrics = some.iterate(0.4)
    assert torch.equal(some.method.guide.flat, before) and "distill/loss_guide" not in metrics
    assert metrics["distill/g_mean"].tolist() == [0.0] * 4
    assert metrics["distill/responsibility"].tolist() == [1.0] * 4
    metrics = some.iterate(0.5)
    assert bool((some.method.guide.flat != before).any(1).all())
    assert {k.removeprefix("distill/") for k in metrics} >= {
        *("g_mean", "g_p90", "coverage", "responsibility", "budget", "lambda", "delta"),
        *("mse_kept", "mse_censored", "loss_guide"),
    }


def test_a_learner_learns_the_same_beside_others():
    many, alone = room(groups=2, warm_up=0.0), room(groups=1, first=1, warm_up=0.0)
    many.rng.manual_seed(1)  # the states it is shown
    for progress in (0.0, 0.5):
        together, apart = many.iterate(progress), alone.iterate(progress)
    for a, b in ((many.agent.nets, alone.agent.nets), (many.method.guide, alone.method.guide)):
        torch.testing.assert_close(a.flat[2:], b.flat, rtol=0, atol=1e-12)
    for name, value in apart.items():
        torch.testing.assert_close(together[name][2:].double(), value.double(), msg=name)


@pytest.mark.parametrize("label", ["mean", "sample"])
@pytest.mark.parametrize("broad", ["box", "teacher"])
def test_a_state_that_is_put_back_goes_on_the_same(label, broad):
    first = room(torch.float32, warm_up=0.0, label=label, broad=broad)
    first.iterate(0.0)
    second = room(torch.float32, warm_up=0.0, label=label, broad=broad)
    second.collect()  # both replays hold the same
    second.agent.load_state({k: x.clone() for k, x in first.agent.state().items()})
    second.method.load_state({k: x.clone() for k, x in first.method.state().items()})
    ours, theirs = first.iterate(0.5), second.iterate(0.5)
    assert torch.equal(first.agent.nets.flat, second.agent.nets.flat)
    assert torch.equal(first.method.guide.flat, second.method.guide.flat)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_the_deviation_is_fitted_behind_the_mean():
    # Samples lie 0.05 (the floor) around the teacher, and the student is off by its error.
    some = room(warm_up=1.0)
    batch = some.collect()
    method, agent = some.method, some.agent
    lesson = method._lesson(batch.raw_obs)
    before = agent.mode(batch.raw_obs)
    method._fit_deviation(lesson, torch.ones_like(lesson.log_broad))
    off = lesson.sample - agent.dist(lesson.obs).mean
    expected = off.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(agent.nets.views["log_std"].exp(), expected.detach())
    assert torch.equal(agent.mode(batch.raw_obs), before)


def test_a_squashed_teachers_mean_is_the_action_it_takes():
    config = ScaffoldConfig()
    teacher = network(3, 2, (16,), 2.0, squashed=True)
    some = Classroom(config, teacher, states, hidden=(6,), minibatch_size=32)
    obs = states(torch.Generator().manual_seed(1), 20).unsqueeze(0)
    dist = teacher.dist(obs[0])
    assert isinstance(dist, DiagGaussian) and dist.squashed
    lesson = some.method._lesson(obs)
    torch.testing.assert_close(lesson.label[0], dist.mean.tanh())
    assert float(lesson.sample.abs().max()) <= 1


BAD: dict[str, Any] = {
    "divergence": "mse",
    "std": 0.0,
    "kappa": -1.0,
    "aux": -0.1,
    "warm_up": 1.5,
    "guide_steps": 0,
    "guide_lr": 0.0,
    "guide_hidden": (0,),
    "delta_end": -1.0,
    "multiplier_lr": -1.0,
    "tolerance": 0.0,
    "coverage": 1.0,
}


@pytest.mark.parametrize("name", BAD)
def test_settings_that_make_no_sense_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"distill.{name}"):
        replace(ScaffoldConfig(), **{name: BAD[name]})


def test_the_budget_falls_by_a_cosine():
    # Half way down from 0.5 to 0.3 in the middle.
    config = ScaffoldConfig()
    assert [config.delta(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.5, 0.4, 0.3])
