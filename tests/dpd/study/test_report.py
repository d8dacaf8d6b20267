"""Plans of a study: number of seeds from the spread of a stored study."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpd.cli import main
from dpd.report.stats import ALPHA, sign_flip_p
from dpd.study.report import MAX_SEEDS, power, read_plans, seeds_for


def stored(out: Path, **scores: list[float]) -> Path:
    """Write the parts of a study.json of one task that plans read; dpd is the subject."""
    arms = {
        a: {"seeds": [{"seed": k, "score": x} for k, x in enumerate(v)]} for a, v in scores.items()
    }
    data: dict[str, Any] = {"subject": "dpd", "arms": dict.fromkeys(arms), "tasks": []}
    data["seeds"] = len(scores["dpd"])
    data["tasks"] = [{"env": "Hopper-v5", "arms": arms}]
    (out / "study.json").write_text(json.dumps(data))
    return out


def test_the_seeds_of_a_t_test_are_those_of_the_textbook() -> None:
    # Cohen's small, medium and large effects, two-sided, 5 %, power 80 % (G*Power: paired t test)
    assert [seeds_for(d, 1) for d in (0.2, 0.5, 0.8)] == [199, 34, 15]
    # no fewer than can decide anything, and no more than MAX_SEEDS
    assert [seeds_for(1e6, arms) for arms in (1, 2, 7)] == [6, 7, 9] and seeds_for(
        1e-3, 1
    ) == MAX_SEEDS
    assert seeds_for(0.5, 7) > seeds_for(0.5, 1)  # each is tested at 5 % / 7


@pytest.mark.parametrize(("effect", "seeds", "arms"), [(1.0, 10, 1), (0.9, 13, 2)])
def test_the_verdicts_have_the_power_that_is_planned_for(
    effect: float, seeds: int, arms: int
) -> None:
    gaps = np.random.default_rng(0).normal(effect, 1, (2_000, seeds))
    shown = (sign_flip_p(gaps) <= ALPHA / arms).mean()
    assert shown == pytest.approx(power(effect, seeds, arms), abs=0.03)


def test_the_spread_is_that_of_the_differences_seed_by_seed(tmp_path: Path) -> None:
    # dpd - one: 9, 11, 9, 11, 9, 11, whose deviation is sqrt(6 / 5) = 1.0954
    one = [0.0, 100.0, 200.0, 300.0, 400.0, 500.0]
    dpd = [x + 10 + (-1) ** (k + 1) for k, x in enumerate(one)]
    data, (plan,) = read_plans(stored(tmp_path, dpd=dpd, one=one), 1.0954451 * 0.5)
    assert (plan.env, plan.arm, data["seeds"]) == ("Hopper-v5", "one", 6)
    assert plan.spread == pytest.approx(1.0954451) and plan.seeds == 34
    # chi2(5): 12.83 and 0.8312, so the deviation lies between 0.684 and 2.687
    assert plan.range == (seeds_for(0.5 / 0.62420, 1), seeds_for(0.5 / 2.45264, 1))


def test_the_command_prints_the_plan_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = stored(tmp_path, dpd=[1.0, 3.0, 2.0], one=[0.0, 0.0, 0.0], uniform=[2.0, 2.0, 2.0])
    assert main(["study", "--plan", "1", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Hopper-v5 one" in said and "Hopper-v5 uniform" in said and "noncentral t" in said
    assert main(["study", "--plan", "1", "--out", str(out), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    # both differences have a deviation of 1: as large as the effect, one of two arms
    assert [p["seeds"] for p in made["plans"]] == [seeds_for(1, 2)] * 2
    assert [f.name for f in out.iterdir()] == ["study.json"]


@pytest.mark.parametrize(
    ("given", "content", "says"),
    [
        (["--plan", "5"], None, "needs the spread of a finished study; run one on a few seeds"),
        (["--plan", "0"], None, "--plan must be a difference of returns above 0, not 0.0"),
        (["--plan", "nan"], None, "--plan must be a difference of returns above 0, not nan"),
        (["--plan", "5"], "{", "study.json is no file of dpd study"),
        (["--plan", "5"], "[1]", "study.json is no file of dpd study"),
        (["--plan", "5"], '{"tasks": [], "arms": {}, "seeds": 1, "subject": "dpd"}', "one seed"),
    ],
)
def test_a_plan_without_a_finished_study_is_refused_in_one_line(
    given: list[str],
    content: str | None,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    assert main(["study", *given, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
