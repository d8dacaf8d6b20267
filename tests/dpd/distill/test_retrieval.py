"""Retrieval: a small student looks its teacher up, and declines where that gains nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpd.distill.method import Context
from dpd.distill.retrieval import WEIGHTS
from dpd.distill.teacher import Teacher
from dpd.distill.teaching_config import DAggerConfig, RetrievalConfig
from dpd.policies import memory
from dpd.policies.memory import Neighbours
from dpd.policies.policyfile import Policy
from tests.toy.classroom import Classroom, network

O, A = 4, 2  # noqa: E741
ITERATIONS = 10
TEACHER = network(O, A, (64, 64), 4.0)
F64 = torch.float64


def states(rng: torch.Generator, k: int) -> Tensor:
    """Draw states [k, O]."""
    return torch.randn(k, O, generator=rng)


PROBE = states(torch.Generator().manual_seed(99), 1000)


def taught(**settings) -> Classroom:
    """Return a student of six units, taught with settings of a small memory."""
    config = RetrievalConfig(
        divergence="mse", embed_steps=150, entries=2000, check_every=ITERATIONS, **settings
    )
    room = Classroom(config, TEACHER, states, 1, hidden=(6,), lr=3e-3, minibatch_size=128)
    room.teach(ITERATIONS)
    return room


def errors(room: Classroom) -> dict[float, float]:
    """Return the held-out squared error at every weight of the student's own action."""
    obs, truth = PROBE.unsqueeze(0), TEACHER.mode(PROBE)
    own, found = room.agent.mode(obs), room.method._memories.answer(room.method._query(obs))
    mixed = {w: memory.mix(own, found, torch.tensor([w])) for w in WEIGHTS}
    return {w: float((act - truth).square().mean()) for w, act in mixed.items()}


def test_the_relational_loss_makes_a_memory_useful_and_only_a_true_one():
    # Section 2's small system: six units, a complex teacher.
    without, with_it, shuffled = taught(gamma=0.0), taught(gamma=0.1), taught(control="shuffled")
    recall = [float(room.last["distill/recall"]) for room in (without, with_it)]
    assert recall[0] < 0.02 < recall[1] and recall[1] > 4 * recall[0]
    plain, useful, useless = errors(without), errors(with_it), errors(shuffled)
    assert min(useful.values()) < useful[1.0]  # the memory gains something
    assert all(plain[w] > plain[1.0] for w in WEIGHTS[1:])  # what is looked up at random, nothing
    assert all(useless[w] > useless[1.0] for w in WEIGHTS[1:])
    # and each run has chosen so, by states it had not seen
    assert with_it.method.weight.item() < 1 and with_it.last["distill/gain_mse"].item() > 0
    assert without.method.weight.item() == shuffled.method.weight.item() == 1
    assert without.method.memory_meta(0) is None and shuffled.method.memory_meta(0) is None


def room(dtype: torch.dtype = torch.float32, groups: int = 2, first: int = 0, **settings):
    """Return a few small students of unlike width."""
    config = RetrievalConfig(
        steps=4,
        embed_steps=5,
        dim=8,
        **{"entries": 300, "check_every": 2, "student_weight": 0.5} | settings,
    )
    small = {"hidden": (6, 6), "sizes": ("6", "3"), "minibatch_size": 32, "lr": 3e-3}
    return Classroom(config, TEACHER, states, groups, dtype, first, **small)


def of_file(room: Classroom, n: int) -> Policy:
    """Return learner n's policy as its file makes it."""
    meta = replace(
        TEACHER.meta,
        hidden=room.agent.config.hidden_of(room.seeds[n][1]),
        memory=room.method.memory_meta(n),
    )
    deployed = room.method
    box = {k: TEACHER.tensors[k] for k in ("act_low", "act_high")}
    return Policy({k: x.float() for k, x in deployed.export(n).items()} | box, meta)


@pytest.mark.parametrize("keys", ["teacher", "obs"])
def test_what_is_saved_acts_as_what_is_evaluated(keys):
    some = room(keys=keys)
    some.teach(3)
    acted = some.method.mode(PROBE.expand(4, -1, -1))
    assert not torch.allclose(acted, some.agent.mode(PROBE.expand(4, -1, -1)), atol=0.01)
    for n in range(4):
        torch.testing.assert_close(of_file(some, n).mode(PROBE), acted[n], rtol=0, atol=1e-6)


def test_weight_one_is_bit_for_bit_the_plain_student():
    some = room(student_weight=1.0)
    some.teach(3)
    assert some.method.memory_meta(0) is None
    assert torch.equal(of_file(some, 0).mode(PROBE), some.agent.mode(PROBE.expand(4, -1, -1))[0])


def test_rows_that_decline_act_bit_for_bit_as_they_are_beside_rows_that_ask():
    some = room()
    some.teach(3)
    some.method.weight[1] = 1.0
    obs = PROBE.expand(4, -1, -1)
    assert torch.equal(some.method.mode(obs)[1], some.agent.mode(obs)[1])
    assert some.method.memory_meta(1) is None and "memory.keys" not in some.method.export(1)
    assert "memory.keys" in some.method.export(0)


@pytest.mark.parametrize("settings", [{"gamma": 0.0}, {"keys": "obs"}])
def test_without_the_relational_loss_a_student_learns_bit_for_bit_as_daggers(settings):
    ours = room(**settings)
    theirs = Classroom(
        DAggerConfig(steps=4),
        TEACHER,
        states,
        2,
        hidden=(6, 6),
        sizes=("6", "3"),
        minibatch_size=32,
        lr=3e-3,
    )
    for some in (ours, theirs):
        some.teach(3)
    assert torch.equal(ours.agent.nets.flat, theirs.agent.nets.flat)


@pytest.mark.parametrize("settings", [{}, {"eta": 1.0}])
def test_a_learner_learns_the_same_beside_wider_ones(settings):
    # Padding must get no gradient from the queries either.
    many, alone = room(F64, 2, 0, **settings), room(F64, 1, 1, **settings)
    many.rng.manual_seed(1)  # the states it is shown
    for progress in (0.0, 0.3, 0.6):
        together, apart = many.iterate(progress), alone.iterate(progress)
    for name, value in apart.items():
        torch.testing.assert_close(together[name][2:].double(), value.double(), msg=name)
    torch.testing.assert_close(many.agent.nets.flat[2:], alone.agent.nets.flat, rtol=0, atol=1e-9)
    assert not bool(many.agent.nets.flat[many.agent.nets.padding].any())


@pytest.mark.parametrize("settings", [{}, {"keys": "obs"}, {"eta": 0.5, "control": "shuffled"}])
def test_a_state_that_is_put_back_goes_on_the_same(settings):
    first, second = (room(check_every=1, student_weight=None, **settings) for _ in range(2))
    first.iterate(0.0)
    first.iterate(0.3)
    for _ in range(2):
        second.collect()  # both replays hold the same
    second.agent.load_state({k: x.clone() for k, x in first.agent.state().items()})
    second.method.load_state({k: x.clone() for k, x in first.method.state().items()})
    ours, theirs = first.iterate(0.6), second.iterate(0.6)
    assert torch.equal(first.agent.nets.flat, second.agent.nets.flat)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    for n in range(4):
        kept = first.method.export(n), second.method.export(n)
        assert all(torch.equal(x, kept[1][k]) for k, x in kept[0].items())


def test_the_states_that_choose_the_weight_are_in_no_memory():
    some = room(check_every=1)
    some.iterate(0.0)
    remember, asked = some.method._remember, []

    def noted(skip: Tensor) -> Neighbours:
        asked.append(skip)
        return remember(skip)

    some.method._remember = noted
    some.iterate(0.5)
    assert asked[0].tolist() == [512] * 4  # of 1,024, the latest half is left out
    keys = some.method.embedding.keys(some.method.batch.raw_obs)
    # between vectors of length 1 the similarity is their cosine less 1/2: 1/2 for a key itself
    without, whole = (remember(skip).find(keys)[0][..., 0] for skip in (asked[0], 0 * asked[0]))
    found = [(x > 0.5 - 1e-5).sum(1) for x in (without, whole)]
    assert found[0].tolist() == [0] * 4 and bool((found[1] > 100).all())


def test_a_memory_is_spread_evenly_over_all_that_is_remembered():
    some = room(keys="obs", entries=64)
    some.teach(2)
    kept = some.method._remember(torch.zeros(4, dtype=torch.int64))
    newest_first = some.agent.replay.states(
        torch.zeros(1, 64, dtype=torch.int64), (torch.arange(64) * 16).unsqueeze(0)
    )
    expected = memory.scaled(some.agent.obs_norm(newest_first.expand(4, -1, -1)))
    torch.testing.assert_close(kept.keys[0], expected[0])


def test_measuring_and_remembering_are_no_questions():
    # Three iterations of four steps on 32 states each; nobody acts here.
    for some in (room(check_every=1), room(check_every=1000)):
        assert some.teach(3)["distill/queries"].tolist() == [3 * 4 * 32] * 4


def test_several_teachers_are_refused():
    some = room()
    context = Context(some.agent, 2, 2, some.seeds, Teacher([TEACHER, TEACHER]))
    with pytest.raises(ValueError, match="one teacher"):
        RetrievalConfig().build(context)


BAD: dict[str, Any] = {
    "gamma": -0.1,
    "eta": -1.0,
    "dim": 0,
    "entries": 0,
    "k": 0,
    "tau": 0.0,
    "bandwidth": 0.0,
    "embed_steps": 0,
    "embed_lr": 0.0,
    "student_weight": 1.5,
    "check_every": 0,
}


@pytest.mark.parametrize("name", BAD)
def test_settings_that_make_no_sense_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"distill.{name}"):
        replace(RetrievalConfig(), **{name: BAD[name]})


def test_more_neighbours_than_entries_are_refused():
    with pytest.raises(ValueError, match=r"distill.k 8 is more than distill.entries 4"):
        RetrievalConfig(entries=4)
