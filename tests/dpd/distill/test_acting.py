"""Who acts: the student, the teacher, or at every step one of both."""

from __future__ import annotations

import pytest
import torch

from dpd.distill.teacher import Mixture
from dpd.distill.teaching_config import DAggerConfig
from tests.toy.students import STUDENT, A, School, constant, drawn

OBS = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))


def mixture(beta: float, explores: bool = False, squashed: bool = False) -> Mixture:
    """Return a mixture of two students and a teacher that acts about (0.8, -0.8)."""
    teacher = constant(0.8, -0.8, log_std=-2.0, squashed=squashed)
    method = School(DAggerConfig(divergence="mse"), STUDENT, teacher, groups=2).method
    made = Mixture(method.actor.agent, method.actor.teacher, method.rng, explores)  # type: ignore[attr-defined]
    made.beta = beta
    return made


@pytest.mark.parametrize("squashed", [False, True])
def test_at_beta_1_the_teacher_acts_with_its_own_noise(squashed: bool) -> None:
    mixed = mixture(1.0, squashed=squashed)
    noise = mixed.noise()[:, 0]
    # the student's two numbers come first, then the teacher's two
    latent = torch.tensor([0.8, -0.8]) + torch.tensor(-2.0).exp() * noise[..., A : 2 * A]
    expected = latent.tanh() if squashed else latent
    torch.testing.assert_close(mixed.act(OBS, noise), expected)


def test_at_beta_0_the_student_acts_without_noise_and_nobody_is_asked() -> None:
    mixed = mixture(0.0)
    assert torch.equal(mixed.act(OBS, mixed.noise()[:, 0]), mixed.agent.mode(OBS))
    assert mixed.teacher.n_queries == 0


def test_a_student_that_explores_acts_with_its_noise() -> None:
    mixed = mixture(0.0, explores=True)
    noise = mixed.noise()[:, 3]
    assert torch.equal(mixed.act(OBS, noise), mixed.agent.act(OBS, noise[..., :A]))


def test_at_beta_a_quarter_the_teacher_acts_in_a_quarter_of_the_steps() -> None:
    mixed = mixture(0.25)
    noise = torch.cat([mixed.noise() for _ in range(8)], 1)
    acts = torch.stack([mixed.act(OBS, noise[:, t]) for t in range(128)], 1)
    own = mixed.agent.mode(OBS).unsqueeze(1).expand_as(acts)
    is_own = (acts == own).all(-1)
    assert (acts[~is_own] * torch.tensor([1.0, -1.0]) > 0.2).all()  # 0.8 less 4 deviations of 0.14
    # of 1,024 steps a quarter is 256, with a deviation of sqrt(1024 * 3/16) = 14
    assert 200 < int((~is_own).sum()) < 312


def test_the_students_noise_is_the_same_with_a_teacher_and_without() -> None:
    mixed, alone = mixture(0.5), STUDENT.build(4, 2, [(0, 0), (1, 0)])
    for _ in range(3):
        assert torch.equal(mixed.noise()[..., :A], alone.noise())


def test_each_students_coins_are_its_own() -> None:
    school = School(DAggerConfig(), STUDENT, drawn(), groups=2)
    both = school.method.actor.noise()
    alone = School(DAggerConfig(), STUDENT, drawn()).method.actor.noise()
    assert torch.equal(both[:1], alone)
    assert not torch.equal(both[0], both[1])
