"""Equal methods are called higher or lower as seldom as a level of 5 % promises."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dpd.report.stats import difference, family

BENCH = Path(__file__).parents[3] / "bench"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """Load the benchmark that counts the verdicts of null experiments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        spec = importlib.util.spec_from_file_location("error_rates", BENCH / "error_rates.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    for name in ("marked", "timing"):
        sys.modules.pop(name, None)
    return module


@pytest.mark.parametrize("is_paired", [True, False], ids=["paired", "unpaired"])
@pytest.mark.parametrize("scores", ["Gaussian", "skewed"])
@pytest.mark.parametrize("n", [6, 10, 20])
def test_one_comparison_of_equals_is_decided_in_3_to_6_of_100(
    bench: ModuleType, n: int, scores: str, is_paired: bool
) -> None:
    # Paired: exactly 2 / 64 = 3.1 % for 6 seeds and 50 / 1024 = 4.9 % for 10, as p is a multiple of
    # 2 / 2^n. Welch's test errs on the safe side where scores are skewed.
    assert bench.NULLS[n] >= 2_000
    assert 0.03 <= bench.error_rate(scores, n, is_paired, bench.NULLS[n]) <= 0.065


@pytest.mark.parametrize("is_paired", [True, False], ids=["paired", "unpaired"])
def test_very_skewed_scores_are_not_decided_more_often(bench: ModuleType, is_paired: bool) -> None:
    assert bench.error_rate("very skewed", 10, is_paired, 4_000) <= 0.065


@pytest.mark.parametrize("is_paired", [True, False], ids=["paired", "unpaired"])
@pytest.mark.parametrize("scores", ["Gaussian", "skewed"])
def test_any_of_seven_arms_is_decided_as_seldom_as_one(
    bench: ModuleType, scores: str, is_paired: bool
) -> None:
    rate = bench.error_rate(scores, 10, is_paired, 2_000, arms=7)
    assert 0.01 <= rate <= 0.065  # without Holm: 1 - 0.95^7 = 30 % of independent arms
    assert bench.error_rate(scores, 6, is_paired, 100, arms=7) == 0  # too few seeds


@pytest.mark.parametrize("is_paired", [True, False], ids=["paired", "unpaired"])
def test_the_verdicts_counted_are_those_that_the_commands_print(
    bench: ModuleType, is_paired: bool
) -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(30, 10))
    others = rng.normal([[0.0], [0.8], [2.0]], 1, (30, 3, 10))
    said = bench.verdicts(first, others, is_paired)
    start = 0 if is_paired else 10  # other seeds are unpaired
    for row, one, several in zip(said, first, others, strict=True):
        alone = {
            str(k): difference(dict(enumerate(one)), dict(enumerate(other, start)))
            for k, other in enumerate(several)
        }
        assert [d.verdict for d in family(alone).values()] == row.tolist()
    assert set(said[:, 2]) == {"higher", "undecided"} and "lower" not in said
