"""Latency is measured in every runtime that is installed, and grows with the policy."""

import shutil

import pytest

from dpd.fidelity.latency import TIMERS, latencies
from tests.dpd.test_export import policy


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_small_policy_is_faster_than_a_large_one_in_c():
    small, large = latencies(policy(hidden=(8, 8))), latencies(policy(hidden=(256, 256)))
    assert list(small) == list(large) == list(TIMERS)
    assert all(us > 0 for us in small.values())
    # 5*8 + 8*8 + 8*2 = 120 products against 5*256 + 256*256 + 256*2 = 67,328
    assert small["C"] * 5 < large["C"]


def test_a_runtime_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert list(latencies(policy(hidden=(8, 8)))) == ["Python", "TorchScript"]
