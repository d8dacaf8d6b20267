"""The search for states with a larger gap, and the selection of new ones."""

from pathlib import Path

import torch
from torch import Tensor

from dpd.cooperate.config import CooperateConfig
from dpd.cooperate.counterfactuals import (
    are_distinct,
    fit_proxies,
    proxy_r2,
    search_loss,
    search_states,
    target_gaps,
)

CONFIG = CooperateConfig(paths=(Path("a"), Path("b")))


def test_the_aim_is_part_of_the_way_to_the_largest_gaps() -> None:
    gap = torch.arange(101.0)  # its 95th percentile is 95
    aimed = target_gaps(gap, 0.5)
    assert aimed[0] == 47.5 and aimed[95] == 95
    assert torch.equal(aimed[96:], gap[96:])  # what is beyond stays


def test_the_objective_by_hand() -> None:
    # (1 - 3)^2 + 0.05 * (0.5 + 0.1) = 4.03
    shift = torch.tensor([[0.5, -0.1]])
    found = search_loss(torch.tensor([1.0]), torch.tensor([3.0]), shift, 0.05)
    torch.testing.assert_close(found, torch.tensor([4.03]))


def test_the_search_goes_uphill_no_farther_than_the_box_and_along_what_matters() -> None:
    start = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))

    def height(z: Tensor) -> Tensor:
        return 2 * z[:, 0]  # the other coordinates do nothing, and cost

    moved = search_states(height, start, CONFIG) - start
    low = height(start) < height(start).quantile(0.95) - 0.2  # nearer, it is not worth its price
    assert moved.abs().max() <= CONFIG.cf_box + 1e-6
    assert (moved[low, 0] > 0).all() and moved[:, 1:].abs().max() == 0
    far = height(start) < 0  # half the way would be farther than the box
    torch.testing.assert_close(moved[far, 0], torch.full((int(far.sum()),), CONFIG.cf_box))


def test_states_that_are_near_a_known_one_or_each_other_are_dropped() -> None:
    known = torch.tensor([[0.0, 0.0]])
    found = torch.tensor([[0.04, 0.0], [1.0, 0.0], [1.03, 0.03], [1.0, 0.05], [2.0, 2.0]])
    # first: 0.04 from a known one; third: 0.042 from the second; fourth: 0.05 from it, enough
    assert are_distinct(found, known, 0.05).tolist() == [False, True, False, True, True]


def test_the_proxy_explains_a_smooth_gap_that_it_has_not_seen_and_no_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    coords = torch.randn(400, 4, generator=generator).double() * torch.tensor([1, 10, 0.1, 1])
    smooth = 100 + 30 * torch.tanh(coords[:, 0] + coords[:, 1] / 10)
    noise = torch.randn(400, generator=generator).double()
    gaps = torch.stack([smooth, noise])
    proxies = fit_proxies(coords[:320], gaps[:, :320], CONFIG, generator)
    found = [proxy_r2(proxies, pair, coords[320:], gaps[pair, 320:]) for pair in (0, 1)]
    assert found[0] is not None and found[0] > 0.9
    assert found[1] is not None and found[1] < 0.2
    assert proxy_r2(proxies, 0, coords[320:], torch.full((80,), 100.0).double()) is None
    z = proxies.standard(coords)
    torch.testing.assert_close(proxies.coordinates(z), coords, atol=1e-5, rtol=1e-5)
