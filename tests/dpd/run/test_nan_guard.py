"""A number that is not finite is named with the learner it came up in."""

import pytest
import torch

from dpd.run.stack import NanGuard, NonFinite

WHO = [(7, 0), (7, 1)]
BAD = torch.tensor([1.0, float("nan")])


def test_on_the_cpu_a_nan_is_named_at_once() -> None:
    checks = NanGuard(WHO, torch.device("cpu"))
    checks.require("observation", torch.zeros(2, 3, 4))
    with pytest.raises(NonFinite, match="loss/policy of seed 7's peer 1"):
        checks.require("loss/policy", BAD)
    checks.check_pending()  # it is told once


def test_on_a_gpu_the_first_one_is_named_when_the_checks_are_settled() -> None:
    checks = NanGuard(WHO, torch.device("cuda"))
    checks.require("observation", torch.zeros(2, 3, 4))
    checks.require("loss/policy", BAD)
    checks.require("parameters", BAD.flip(0))
    with pytest.raises(NonFinite, match="loss/policy of seed 7's peer 1"):
        checks.check_pending()
    checks.check_pending()
