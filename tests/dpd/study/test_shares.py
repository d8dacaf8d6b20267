"""Shares of an arm's seeds: their directories, their report, and the refusal of other ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpd.cli import main
from dpd.run.sources import Records
from dpd.study.config import StudyConfig
from dpd.study.shares import join_records

SMALL = ["--n-envs", "2", "--n-steps", "64", "--evals", "2", "--eval-episodes", "1"]
SMALL += ["--final-episodes", "1", "--hidden", "8", "--threads", "1", "--kernels", "torch"]


def argv(out: Path, *more: str) -> list[str]:
    """Return the arguments of a study of two arms and three seeds."""
    asked = ["study", "Hopper-v5", "--arms", "one", "--seeds", "3", "--total-steps", "512"]
    return [*asked, "--episodes", "1", "--threads", "1", "--out", str(out), *more, "--", *SMALL]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a study whose arms train in two shares, of two seeds and of one."""
    out = tmp_path_factory.mktemp("shares")
    assert main(argv(out, "--shares", "2")) == 0
    return out


def test_an_arm_in_two_shares_has_the_scores_of_one_run(shared: Path, tmp_path: Path) -> None:
    assert main(argv(tmp_path)) == 0
    arms: list[dict[str, Any]] = [
        json.loads((out / "study.json").read_text())["tasks"][0]["arms"]
        for out in (shared, tmp_path)
    ]
    for arm in ("dpd", "one"):
        parts, whole = (found[arm]["seeds"] for found in arms)
        assert [s["seed"] for s in parts] == [0, 1, 2]
        # a stack of another size may round sums otherwise
        for name in ("score",):
            assert [s[name] for s in parts] == pytest.approx([s[name] for s in whole], rel=1e-3)
        assert [s["best_peer"] for s in parts] == [s["best_peer"] for s in whole]
        assert arms[0][arm]["seconds"] > 0 and arms[0][arm]["area"] is not None


def test_shares_are_runs_of_their_own_that_the_page_names(shared: Path) -> None:
    folders = sorted(path.name for path in (shared / "Hopper-v5/dpd").iterdir())
    assert folders == ["seeds0-1", "seeds2-2"]
    text = (shared / "study.md").read_text()
    assert "trained as 2 runs: --seed 0 --seeds 2, --seed 2 --seeds 1." in text
    assert "dpd train Hopper-v5 --algo ppo --seeds 3 --seed 0" in text


def test_other_shares_of_a_study_are_refused(
    shared: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(argv(shared)) == 2  # one run of all seeds would train them again
    said = capsys.readouterr().err
    assert "seeds0-1 is a share of other seeds than those of --shares 1" in said
    assert main(argv(shared, "--shares", "3")) == 2
    assert "of --shares 3 --seed 0 --seeds 3; give the same" in capsys.readouterr().err
    (tmp_path / "Hopper-v5/dpd").mkdir(parents=True)
    (tmp_path / "Hopper-v5/dpd/config.json").write_text("{}")
    assert main(argv(tmp_path, "--shares", "3")) == 2
    assert "holds one run of all seeds; leave --shares out" in capsys.readouterr().err


def test_more_shares_than_seeds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--seeds", "2", "--shares", "3"]) == 2
    assert "--shares 3 for 2 seeds: a share needs one" in capsys.readouterr().err


def test_shares_are_consecutive_and_differ_by_at_most_one_seed() -> None:
    config = StudyConfig(seeds=10, seed=5, shares=3)
    shares = [share.seeds for share in config.shares_of("Hopper-v5", "dpd")]
    assert shares == [range(5, 9), range(9, 12), range(12, 15)]
    words = config.words("Hopper-v5", "dpd", config.shares_of("Hopper-v5", "dpd")[1])
    assert words[3:7] == ["--seeds", "3", "--seed", "9"]
    assert words[-2:] == ["--out", "study/Hopper-v5/dpd/seeds9-11"]


def test_more_seeds_may_join_in_further_shares_of_the_same_size() -> None:
    few, many = StudyConfig(seeds=4, shares=2), StudyConfig(seeds=8, shares=4)
    assert many.shares_of("Hopper-v5", "dpd")[:2] == few.shares_of("Hopper-v5", "dpd")


def test_the_seconds_of_shares_add_up_if_all_are_known() -> None:
    first = Records({(0, 0): {64: 1.0}}, 64, 2.5)
    second = Records({(1, 0): {64: 2.0}}, 64, 3.0)
    joined = join_records([first, second])
    assert joined == Records({(0, 0): {64: 1.0}, (1, 0): {64: 2.0}}, 64, 5.5)
    unknown = join_records([first, second._replace(seconds=None)])
    assert unknown is not None and unknown.seconds is None and join_records([first, None]) is None
