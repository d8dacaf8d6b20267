"""Studies from end to end on small runs, and their statistics on made-up scores."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from scipy import stats

from dpd.cli import main, parse_train
from dpd.policies.policyfile import Policy
from dpd.run.sources import Run, SavedLearner
from dpd.study import study as command
from dpd.study.arms import ARMS
from dpd.study.compare import EvaluatedPolicy, RunResult
from dpd.study.config import StudyConfig
from dpd.study.report import aggregate_json, aggregate_tables
from dpd.study.study import Findings, TaskResult, worst_quarter
from tests.toy.html import Reader

SMALL = ["--n-envs", "2", "--n-steps", "64", "--evals", "2", "--eval-episodes", "1"]
SMALL += ["--final-episodes", "1", "--hidden", "8", "--threads", "1"]
ASKED = ["--arms", "independent", "one", "--own", "sharp=--distill.alpha 10", "--seeds", "2"]
ASKED += ["--seed", "3", "--total-steps", "1024", "--episodes", "2", "--threads", "1"]


def argv(out: Path, *more: str) -> list[str]:
    """Return the arguments of a small study."""
    return ["study", "Hopper-v5", *ASKED, *more, "--out", str(out), "--", *SMALL]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a study of four arms on two seeds."""
    out = tmp_path_factory.mktemp("studied")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        assert main(argv(out)) == 0
    return out


def test_the_figures_follow_from_the_returns(done: Path) -> None:
    data = json.loads((done / "study.json").read_text())
    assert list(data["arms"]) == ["dpd", "independent", "one", "sharp"]
    (task,) = data["tasks"]
    assert task["env"] == "Hopper-v5" and data["whole"] == {}
    scores = {}
    for arm, of_arm in task["arms"].items():
        assert of_arm["steps"] == [1024]  # whatever the number of peers
        assert [s["seed"] for s in of_arm["seeds"]] == [3, 4]
        assert [len(s["peers"]) for s in of_arm["seeds"]] == [1 if arm == "one" else 2] * 2
        scores[arm] = [np.mean([p["mean"] for p in s["peers"]]) for s in of_arm["seeds"]]
        assert of_arm["worst_quarter"] == pytest.approx(min(scores[arm]))  # 1 of 2 seeds
    for arm in ("independent", "one", "sharp"):
        gaps = np.subtract(scores["dpd"], scores[arm])
        gap = task["arms"][arm]["gap"]
        assert gap["paired"] and gap["mean"] == pytest.approx(gaps.mean())
        half = 12.7062 * abs(gaps[0] - gaps[1]) / 2  # t(1, 97.5 %) standard errors of two seeds
        assert gap["interval"] == pytest.approx([gaps.mean() - half, gaps.mean() + half])
        assert gap["p"] == (0.5 if gaps[0] * gaps[1] > 0 else 1.0)  # of 2^2 signs
        assert gap["p_adjusted"] == 1 and gap["verdict"] == "too few seeds"  # 3 * 0.5
    assert "gap" not in task["arms"]["dpd"]


def test_the_learning_follows_from_the_evaluations(done: Path) -> None:
    data = json.loads((done / "study.json").read_text())
    (task,) = data["tasks"]
    one = task["arms"]["one"]
    assert task["level"] == pytest.approx(0.1 * task["random"] + 0.9 * one["mean"])
    areas = {}
    for arm, of_arm in task["arms"].items():
        assert of_arm["evaluation_steps"] == [512, 1024] and of_arm["seconds"] > 0
        curves = [np.mean([p["evaluations"] for p in s["peers"]], 0) for s in of_arm["seeds"]]
        assert [p["last_evaluation"] for s in of_arm["seeds"] for p in s["peers"]] == [
            p["evaluations"][-1] for s in of_arm["seeds"] for p in s["peers"]
        ]
        # half of the steps have the first evaluation, the others the mean of both
        areas[arm] = [(3 * a + b) / 4 for a, b in curves]
        assert of_arm["area"] == pytest.approx(np.mean(areas[arm]))
        half = 12.7062 * abs(areas[arm][0] - areas[arm][1]) / 2  # t(1, 97.5 %)
        low, high = of_arm["area_interval"]
        assert (high - low) / 2 == pytest.approx(half)
    gap = task["arms"]["one"]["area_gap"]
    assert gap["mean"] == pytest.approx(np.subtract(areas["dpd"], areas["one"]).mean())
    assert gap["p_adjusted"] == 1 and "area_gap" not in task["arms"]["dpd"]
    assert one["time_gap"]["paired"] and "time_gap" not in task["arms"]["dpd"]
    assert "after equal seconds of training, return of dpd minus" in (done / "study.md").read_text()


def test_a_study_can_be_judged_again_from_its_file(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "bench")
    monkeypatch.delitem(sys.modules, "rejudge", raising=False)
    rejudge = importlib.import_module("rejudge")
    data = json.loads((done / "study.json").read_text())
    again = rejudge.rejudged(data)
    for old, new in zip(data["tasks"], again["tasks"], strict=True):
        for arm, of_arm in old["arms"].items():
            for name in of_arm:
                assert new["arms"][arm][name] == of_arm[name], name
    assert again["notes"] == data["notes"]


def test_finished_runs_are_not_trained_again(
    done: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(config: object) -> int:
        raise AssertionError("trained again")

    monkeypatch.setattr(command, "train", refuse)
    before = (done / "study.json").read_text()
    assert main(argv(done, "--json")) == 0
    said = capsys.readouterr().out
    assert json.loads(said) == json.loads(before)
    assert (done / "study.json").read_text() == said == before


def test_the_page_loads_nothing_and_answers_every_question(done: Path) -> None:
    seen = Reader()
    seen.feed((done / "study.html").read_text())
    assert all(x.startswith("#") for x in seen.refers) and seen.tags.count("svg") == 2
    assert "Hopper-v5: learning; seconds of training on" in seen.text
    assert "mean return over the steps of dpd minus that of" in seen.text
    assert "\n| one | " in (done / "study.md").read_text().partition("learning;")[2]
    assert not {"script", "link", "img"} & set(seen.tags)
    for arm in ("independent", "one"):
        assert ARMS[arm].asks.capitalize() in seen.text and f"dpd − {arm}: " in seen.text
    assert "Is it better than --distill.alpha 10?" in seen.text
    assert "dpd train Hopper-v5 --algo ppo --seeds 2 --seed 3 --total-steps 1024" in seen.text
    assert "fewer than 7 seeds cannot decide 3 differences: dpd has 2" in seen.text
    assert "\n| one | " in (done / "study.md").read_text()
    assert "p adj." in seen.text and ", adjusted 1: too few seeds" in seen.text
    assert (
        "best peers minus that of" in seen.text and "is too narrow for fewer than 20" in seen.text
    )


def test_a_directory_with_runs_of_other_settings_is_refused(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = [*argv(done), "--lr", "0.5"]
    assert main(other) == 2
    said = capsys.readouterr().err
    assert "holds a run with other settings, such as lr 0.0003" in said and said.count("\n") == 1
    assert main(argv(done, "--total-steps", "2048")) == 2
    assert "such as total_steps 1024" in capsys.readouterr().err
    assert main(argv(done, "--seeds", "4")) == 2
    said = capsys.readouterr().err
    assert "dpd holds seeds 3 to 4, and" in said and "gains no seeds" in said
    assert "give --seed 3 --seeds 2 for these, or another directory" in said
    assert "for seeds 3 to 6" in said and said.count("\n") == 1


def test_a_run_that_ends_early_ends_the_study_which_then_resumes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[Path | None, Path | None]] = []
    real, statuses = command.train, iter([0, 130])

    def train(config: Any) -> int:
        trained.append((config.run.out, config.run.resume))
        return next(statuses, None) or real(config)

    monkeypatch.setattr(command, "train", train)
    two = ["study", "Hopper-v5", "--arms", "one", "--seeds", "1", "--total-steps", "256"]
    two += ["--episodes", "1", "--threads", "1", "--out", str(tmp_path), "--", *SMALL]
    assert main(two) == 130 and not (tmp_path / "study.json").exists()
    assert "rerun the study to resume this run" in capsys.readouterr().out
    # what a run that was stopped at once leaves: its settings, and no checkpoint yet
    plan = parse_train(StudyConfig(**settings(tmp_path)).words("Hopper-v5", "one"))
    (tmp_path / "Hopper-v5" / "one").mkdir(parents=True, exist_ok=True)
    (tmp_path / "Hopper-v5" / "one" / "config.json").write_text(json.dumps(plan.as_json()))
    assert main(two) == 0 and (tmp_path / "study.json").exists()
    subject, one = tmp_path / "Hopper-v5" / "dpd", tmp_path / "Hopper-v5" / "one"
    assert trained == [(subject, None), (one, None), (None, one)]


def settings(out: Path) -> dict[str, Any]:
    """Return the settings of the study that is stopped."""
    names = {"envs": ("Hopper-v5",), "arms": ("one",), "seeds": 1, "total_steps": 256}
    return names | {"episodes": 1, "threads": 1, "out": out, "flags": tuple(SMALL)}


@pytest.mark.parametrize("algo", ["ppo", "td3", "ddpg", "sac"])
def test_arms_differ_from_the_subject_in_what_they_are_for_alone(algo: Any) -> None:
    config = StudyConfig(envs=("Hopper-v5",), algo=algo)
    found = {arm: parse_train(config.words("Hopper-v5", arm)) for arm in config.chosen}
    assert ("shared-replay" in found) == (algo != "ppo") and "modern" not in found
    subject = found["dpd"].as_json()
    # PPO's peers share experience by default, so one learner collects as much as both
    shares, n_envs = ({"share_experience"}, {"n_envs"}) if algo == "ppo" else (set(), set())
    for arm, plan in found.items():
        assert plan.run.total_steps == 1_000_000 and plan.run.seeds == 10
        changed = {k for k, v in plan.as_json().items() if v != subject[k]}
        wanted = {
            "dpd": set(),
            "independent": {"method", "distill", *shares},
            "one": {"method", "distill", "peers", *shares, *n_envs},
            "shared-replay": {"method", "distill", "share_replay"},
            "extra-updates": {"method", "distill", "extra_policy_updates"},
        }.get(arm, {"distill"})
        assert changed == wanted, arm


def made(arm: str, scores: list[float]) -> RunResult:
    """Make the result of an arm with one peer whose seeds have these scores."""
    members = [SavedLearner(s, 0, Path(), cast(Policy, None), None) for s in range(len(scores))]
    run = Run(path=Path(), name=arm, members=tuple(members), budget=None, records=None)
    played = [EvaluatedPolicy(m, np.array([x])) for m, x in zip(members, scores, strict=True)]
    return RunResult(run, {p.member.seed: [p] for p in played})


def findings(*tasks: TaskResult) -> Findings:
    config = StudyConfig(
        envs=tuple(task.env for task in tasks), arms=("one",), seeds=len(tasks[0].subject.scores)
    )
    return Findings(config=config, tasks=list(tasks), notes=[])


def test_tasks_are_joined_in_their_own_units() -> None:
    # A: uniform actions 0, best arm 100: dpd 1.2 0.8, one 0.5 0.7. B: 10 and 20 + 10 = 30: one is
    # the best, dpd 0.5 0.5, one 0.75 1.25. Of four scores the interquartile mean is that of the
    # middle two: dpd (0.5 + 0.8) / 2, one (0.7 + 0.75) / 2. Gaps: 0.7 0.1 -0.25 -0.75, mean -0.05.
    a = TaskResult(
        env="A",
        random=0,
        results={r: made(r, s) for r, s in {"dpd": [120.0, 80.0], "one": [50.0, 70.0]}.items()},
    )
    b = TaskResult(
        env="B",
        random=10,
        results={r: made(r, s) for r, s in {"dpd": [20.0, 20.0], "one": [25.0, 35.0]}.items()},
    )
    assert (a.unit, b.unit) == (100, 20)
    aggregates = findings(a, b).aggregates
    assert aggregates["dpd"].iqm == pytest.approx(0.65) and aggregates["dpd"].gap is None
    assert aggregates["one"].iqm == pytest.approx(0.725)
    gap = aggregates["one"].gap
    assert gap is not None and gap.mean == pytest.approx(-0.05) and gap.verdict == "too few seeds"
    # tasks are strata: squared standard errors 0.3^2 and 0.25^2, a quarter of whose sum is that of
    # -0.05, with 0.1525^2 / (0.09^2 + 0.0625^2) = 1.937 degrees of freedom
    half = stats.t.ppf(0.975, 0.1525**2 / (0.09**2 + 0.0625**2)) * (0.1525 / 4) ** 0.5
    assert gap.interval == pytest.approx((-0.05 - half, -0.05 + half))
    # with all signs the gaps sum to +-1.8 1.6 1.3 1.1 0.4 0.3 0.2 0.1: as far as -0.2 are 14 of 16
    assert gap.p == pytest.approx(14 / 16) and gap.seeds == 2


def test_a_difference_of_many_seeds_in_all_tasks_is_decided() -> None:
    tasks = [
        TaskResult(
            env=env,
            random=0,
            results={
                "dpd": made("dpd", [10.0, 11.0, 12.0, 13.0, 14.0, 12.0]),
                "one": made("one", [5.0, 6.0, 5.0, 6.0, 5.0, 5.4]),
            },
        )
        for env in "AB"
    ]
    found = findings(*tasks)
    gap = found.aggregates["one"].gap
    assert gap is not None and gap.verdict == "higher" and gap.p == 2 / 2**12  # 6 in both tasks
    assert tasks[0].gaps["one"].mean == pytest.approx(6.6)  # 12 - 5.4
    best = tasks[0].best_gaps["one"]
    assert best is not None and best.mean == pytest.approx(6.6)  # of one peer it is the best
    titles = [table.title for table in aggregate_tables(found)]
    assert titles[-1] == "Over 2 tasks: mean of dpd minus that of"
    assert aggregate_json(found.aggregates["one"])["gap"]["verdict"] == "higher"


def test_where_nothing_was_learned_tasks_are_not_joined() -> None:
    good = TaskResult(env="A", random=0, results={r: made(r, [1.0, 2.0]) for r in ("dpd", "one")})
    bad = TaskResult(env="B", random=5, results={r: made(r, [1.0, 2.0]) for r in ("dpd", "one")})
    assert findings(good, bad).aggregates == {} and findings(good).aggregates == {}


def test_the_worst_quarter_worked_by_hand() -> None:
    assert worst_quarter([4.0, 1.0, 3.0, 2.0]) == 1
    assert worst_quarter([5.0, 1.0, 3.0, 2.0, 4.0]) == 1.5  # 2 of 5
    assert worst_quarter([7.0]) == 7


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--arms", "independant"], "unknown arm 'independant'; did you mean independent or"),
        (["--arms", "shared-replay"], "arm shared-replay needs --share-replay, which ppo"),
        (["--arms", "dpd"], "compares at least two arms"),
        (["--subject", "best"], "unknown arm 'best'"),
        (["--own", "sharp"], "--own takes NAME=FLAGS"),
        (["--own", "x=--seed 1", "x=--seed 2"], "--own takes NAME=FLAGS, each name once"),
        (["--own", "odd=--distill.alpa 3"], "arm odd: "),
        (["--own", "odd=--distill.ruler lcb"], "arm odd: distill.ruler lcb needs critics"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--total-steps", "9"], "arm dpd: --total-steps 9 is less than one iteration"),
        (["Hopper-v5"], "at least one ENV, each given once"),
        (["--", "--seeds", "3"], "--seeds after -- is set by the study"),
        (["--", "--total_steps", "3"], "--total-steps after -- is set by the study"),
        (["--", "--peers=3"], "--peers after -- is set by the study"),
        (["--", "--backend", "warp", "--env-kwargs", "{"], "--env-kwargs is not JSON"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_trained(
    given: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["study", "--out", str(out), "Hopper-v5", *given]) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
    assert not out.exists()
