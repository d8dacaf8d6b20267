"""Gains of policies that taught each other, and the verdicts on them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from dpd.cooperate.config import CooperateConfig
from dpd.cooperate.cooperation import Cooperation, policies_json
from dpd.cooperate.report import gains_sentence, gains_table
from dpd.cooperate.simulator import Budget


def outcome(*gains: list[float]) -> Cooperation:
    """Return a cooperation whose policies a, b, ... got 100 before in every episode."""
    subjects: Any = [SimpleNamespace(name="abc"[k], origin={}, file="") for k in range(len(gains))]
    found = Cooperation(
        subjects=subjects,
        env_id="Swimmer-v5",
        config=CooperateConfig(paths=(Path("a"), Path("b")), episodes=len(gains[0])),
        budget=Budget(10**6),
    )
    found.before = np.full((len(gains), len(gains[0])), 100.0)
    found.after = found.before + np.array(gains)
    return found


def test_all_policies_are_one_family() -> None:
    # eight episodes: all of one sign 2 / 256; -1 alone against 2 to 8: 4 / 256; none: 1. Holm takes
    # them times 3, 2 and 1
    found = outcome([-10.0] * 8, [-1.0, 2, 3, 4, 5, 6, 7, 8], [0.0] * 8)
    assert [g.p for g in found.gains] == [2 / 256, 4 / 256, 1]
    assert [g.p_adjusted for g in found.gains] == [6 / 256, 8 / 256, 1]
    assert gains_sentence(found) == "Gains by adjusted p: higher (b), lower (a), undecided (c)."
    rows = gains_table(found).rows
    assert rows[0] == ["0 a", "-10", "-10…-10", "0.0078", "0.023", "lower"]
    said = policies_json(found)[1]
    assert (said["gain"], said["p"], said["verdict"]) == (4.25, 4 / 256, "higher")
    low, high = said["interval_gain"]
    assert 0 < low < 4.25 < high


def test_few_episodes_decide_nothing() -> None:
    few = outcome([-10.0] * 6, [-20.0] * 6)  # 2 * 2 / 64 > 0.05
    assert gains_sentence(few) == "Gains by adjusted p: too few episodes (a, b)."
    assert "note: fewer than 7 episodes cannot decide the gains of 2 policies" in few.remarks()
