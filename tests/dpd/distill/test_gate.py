import math
from typing import Any

import pytest
import torch

from dpd.distill.peers import dpd_loss
from dpd.distill.peers_config import DPDConfig
from dpd.distill.rulers import effective_sample_size, gap, gate_weight
from tests.toy.peers import F64, f64

ONE = torch.ones(1, 1)


def test_the_gap_is_how_much_better_the_peer_is() -> None:
    assert gap(f64(1, 2), f64(3, 1)).tolist() == [[2, -1]]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DPDConfig(gate="hard"), (1, 0, 0, 1)),
        (DPDConfig(gate="uniform"), (1, 1, 1, 1)),
        # two of four states are ahead
        (DPDConfig(gate="uniform", match_dose=True), (0.5, 0.5, 0.5, 0.5)),
        (DPDConfig(gate="hard", control="reversed"), (0, 1, 0, 0)),
        # one of four is ahead once the sign is turned
        (
            DPDConfig(gate="uniform", match_dose=True, control="reversed"),
            (0.25, 0.25, 0.25, 0.25),
        ),
    ],
)
def test_hard_and_uniform_weights_worked_by_hand(
    config: DPDConfig, expected: tuple[float, ...]
) -> None:
    weight = gate_weight(f64(3, -1, 0, 2), ONE, config)
    assert weight.tolist() == [list(expected)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # exp(2 xi / 4) = 1, 2, 5: times 3 / 8
        (DPDConfig(alpha=2), (0.375, 0.75, 1.875)),
        # exp(-2 xi / 4) = 1, 1/2, 1/5: times 3 / 1.7 = 30 / 17
        (DPDConfig(alpha=2, control="reversed"), (30 / 17, 15 / 17, 6 / 17)),
        # 1, 2, 5 within [0.5, 2] are 1, 2, 2: over their mean 5/3
        (DPDConfig(alpha=2, weight_clip=(0.5, 2.0)), (0.6, 1.2, 1.2)),
        # 1, 0.5, 0.2 within [0.5, 2] are 1, 0.5, 0.5: over their mean 2/3
        (DPDConfig(alpha=2, weight_clip=(0.5, 2.0), control="reversed"), (1.5, 0.75, 0.75)),
    ],
)
def test_soft_weights_worked_by_hand(config: DPDConfig, expected: tuple[float, ...]) -> None:
    xi = f64(0, 2 * math.log(2), 2 * math.log(5))
    weight = gate_weight(xi, torch.full((1, 1), 4.0, dtype=F64), config)
    assert weight[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_soft_weights_have_mean_one_and_do_not_overflow(dtype: torch.dtype) -> None:
    # e^1000000 is beyond any float; the largest gap takes all of the mean: 3, 0, 0
    xi = torch.tensor([[1e6, 0.0, -1e6]], dtype=dtype)
    assert gate_weight(xi, ONE, DPDConfig()).tolist() == [[3, 0, 0]]
    clipped = gate_weight(xi, ONE, DPDConfig(weight_clip=(0.01, 100.0)))
    # 100, 1, 0.01 over their mean 33.67
    assert clipped[0].tolist() == pytest.approx([100 / 33.67, 1 / 33.67, 0.01 / 33.67])


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        # K softmax of log 8, log 4, log 2, log 1, log 1 is 5 * (8, 4, 2, 1, 1) / 16
        (None, (2.5, 1.25, 0.625, 0.3125, 0.3125)),
        (2.5, (2.5, 1.25, 0.625, 0.3125, 0.3125)),
        # the first at 2; the others share 3: 3 * (4, 2, 1, 1) / 8
        (2.0, (2.0, 1.5, 0.75, 0.375, 0.375)),
        # the first at 1.4 would leave 3.6 * 4 / 8 = 1.8 to the second: it is at 1.4 too, and the
        # others share 2.2: 2.2 * (2, 1, 1) / 4
        (1.4, (1.4, 1.4, 1.1, 0.55, 0.55)),
    ],
)
def test_bounded_weights_worked_by_hand(most: float | None, expected: tuple[float, ...]) -> None:
    xi = f64(*(math.log(x) for x in (8, 4, 2, 1, 1)))
    order = torch.tensor([[3, 0, 4, 2, 1]])  # in whatever order they come
    weight = gate_weight(xi.gather(1, order), ONE, DPDConfig(max_weight=most))
    assert weight[0].tolist() == pytest.approx([expected[i] for i in order[0].tolist()])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("alpha", [0.1, 1.0, 3.0, 10.0, 1000.0])
def test_however_sharp_the_gate_a_hundredth_of_the_states_counts(
    alpha: float, dtype: torch.dtype
) -> None:
    xi = torch.randn(3, 2048, generator=torch.Generator().manual_seed(0), dtype=dtype)
    xi[1] = xi[1] ** 3  # far more in its tails
    weight = gate_weight(xi, ONE, DPDConfig(alpha=alpha))
    assert weight.max() <= 100 * (1 + 1e-6)
    torch.testing.assert_close(weight.mean(1), torch.ones(3, dtype=dtype), rtol=1e-4, atol=0)
    # mean w^2 <= 100 mean w = 100
    assert effective_sample_size(weight).min() >= 0.01 * (1 - 1e-4)
    ranked = weight.gather(1, xi.argsort(1))
    assert (ranked.diff(dim=1) >= -1e-6).all()  # a larger gap never weighs less
    free = gate_weight(xi, ONE, DPDConfig(alpha=alpha, max_weight=None))
    if free.max() <= 100:
        assert torch.equal(weight, free)  # where nothing is beyond it, the bound changes nothing
    for n in range(3):
        alone = gate_weight(xi[n : n + 1], ONE, DPDConfig(alpha=alpha))
        assert torch.equal(alone[0], weight[n])


def test_at_the_limit_of_a_sharp_gate_the_states_of_the_largest_gaps_count_alike() -> None:
    # 8 states, at most 4 each: the two largest gaps get all of the mean
    weight = gate_weight(f64(5, 1, 9, 2, 3, 4, 6, 7), ONE, DPDConfig(alpha=1e4, max_weight=4.0))
    assert weight[0].tolist() == pytest.approx([0, 0, 4, 0, 0, 0, 0, 4])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_weight": 1.0}, "max_weight must be more than 1"),
        ({"max_weight": 5.0, "gate": "hard"}, "max_weight does nothing with gate hard"),
        (
            {"max_weight": 5.0, "weight_clip": (0.01, 100.0)},
            "max_weight does nothing beside weight_clip",
        ),
    ],
)
def test_a_bound_that_would_do_nothing_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DPDConfig(**settings)


def test_the_soft_gate_tends_to_the_uniform_one_as_alpha_vanishes() -> None:
    weight = gate_weight(f64(3, -1, 2), ONE, DPDConfig(alpha=1e-9))
    assert weight[0].tolist() == pytest.approx([1, 1, 1])


def test_shuffled_weights_are_moved_as_the_permutation_says() -> None:
    config = DPDConfig(gate="hard", control="shuffled")
    order = torch.tensor([[3, 2, 1, 0]])
    assert gate_weight(f64(3, -1, 0, -2), ONE, config, order).tolist() == [[0, 0, 0, 1]]


def test_the_loss_worked_by_hand() -> None:
    # (1 * 3 + 0 * 5 + 2 * 0.5) / 3 = 4/3
    assert dpd_loss(f64(3, 5, 0.5), f64(1, 0, 2)).tolist() == pytest.approx([4 / 3])


def test_a_weight_of_another_shape_is_refused() -> None:
    # (B, 1) weights on (B,) distances cancelled in the 2020 code (D1)
    with pytest.raises(ValueError, match=r"weight \(3, 1\) for distance \(1, 3\)"):
        dpd_loss(f64(3, 5, 0.5), f64(1, 0, 2).T)


def test_effective_sample_size_worked_by_hand() -> None:
    # (1 + 1)^2 / (1 + 1) = 2 of 4 states; (3 + 1)^2 / (9 + 1) = 1.6 of 2; nothing of nothing
    assert effective_sample_size(f64(1, 1, 0, 0)).tolist() == [0.5]
    assert effective_sample_size(f64(3, 1)).tolist() == pytest.approx([0.8])
    assert effective_sample_size(f64(0, 0)).tolist() == [0]
