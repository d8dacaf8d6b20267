"""Functions do what the commands do, and return the numbers that the commands print."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dpd
import dpd.export as export_module
from dpd.cli import COMMANDS, main
from dpd.envs.user_task import register_task
from dpd.errors import BadInput, Diverged
from dpd.log.csv import read_rows
from dpd.policies.policyfile import Policy
from dpd.run.outcome import TrainOutcome
from tests.toy.short import SHORT


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainOutcome:
    out = tmp_path_factory.mktemp("api") / "run"
    return dpd.train("Swimmer-v5", seeds=2, out=out, **SHORT)


def test_importing_dpd_takes_no_time_and_no_torch() -> None:
    program = (
        "import sys, time; start = time.process_time(); import dpd; "
        "spent = time.process_time() - start; dpd.train; dpd.study; dpd.tune; dpd.push; dpd.pull; "
        "dpd.watch; dpd.Callback; dir(dpd); "
        "print('torch' in sys.modules, spent < 0.1)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False True\n", done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_function_that_explains_itself(name: str) -> None:
    function = inspect.unwrap(getattr(dpd, name))
    assert function.__module__ == "dpd.api" and name in dpd.__all__
    assert f"`dpd {name}`" in (function.__doc__ or "")
    parameters = inspect.signature(getattr(dpd, name)).parameters
    # pull takes one setting, and without a directory for all files it returns a policy
    assert {"verbose", "revision" if name == "pull" else "settings"} <= set(parameters)


def test_every_function_is_a_command_and_is_on_the_pages_of_the_documentation() -> None:
    functions = {
        name
        for name, value in inspect.getmembers(dpd.api, inspect.isfunction)
        if value.__module__ == "dpd.api" and not name.startswith("_")
    }
    assert functions == set(COMMANDS)
    docs = Path(__file__).parents[3] / "docs"
    reference = (docs / "reference" / "api.md").read_text()
    guide = (docs / "guides" / "python.md").read_text()
    assert [name for name in functions if f"::: dpd.api.{name}\n" not in reference] == []
    assert [name for name in functions if f"`dpd.{name}`" not in guide] == []


def test_a_task_of_ones_own_takes_one_import() -> None:
    assert dpd.MujocoTask.__module__ == "dpd.envs.user_task"
    assert dpd.register_task is register_task


def test_a_module_with_the_name_of_a_function_is_both() -> None:
    assert export_module.TOLERANCE == 1e-3  # the module, also once the function was used
    with pytest.raises(BadInput, match="no such file"):
        dpd.export("none.safetensors", "torchscript")
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = dpd.trian


def recorded(path: Path) -> list[dict[str, str]]:
    """Return the records of a run, without times."""
    return [r for r in read_rows(path / "metrics.csv") if not r["metric"].startswith("time/")]


def test_train_makes_the_run_of_the_command_and_prints_nothing(
    run: TrainOutcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "Swimmer-v5", "--seeds", "2", "--out", str(tmp_path / "same")]
    for name, value in SHORT.items():
        argv += [f"--{name.replace('_', '-')}", str(*value) if name == "hidden" else str(value)]
    assert main(argv) == 0
    assert recorded(run.path) == recorded(tmp_path / "same")
    assert "Deterministic evaluation" in capsys.readouterr().out
    short = SHORT | {"total_steps": 256, "evals": 1}
    quiet = dpd.train("Swimmer-v5", out=tmp_path / "quiet", **short)
    assert capsys.readouterr().out == "" and not quiet.is_stopped
    dpd.train(resume=quiet.path, verbose=True)
    assert "all 256 steps are done" in capsys.readouterr().out


def test_a_run_has_its_policies_returns_and_metrics(run: TrainOutcome) -> None:
    # two seeds of two peers, each with its last and its best policy
    assert len(run.policy_files) == len(run.policies) == 8 and len(run.last_policies) == 4
    assert {row.policy for row in run.policies} == {file.stem for file in run.policy_files}
    assert all(len(row.returns) == row.episodes == 2 for row in run.policies)
    assert run.policies[0].mean == pytest.approx(sum(run.policies[0].returns) / 2)
    evaluated = [row for row in run.metrics if row.metric == "eval/return"]
    assert [(r.step, r.seed, r.peer) for r in evaluated[:2]] == [(256, 0, 0), (256, 0, 1)]
    steps, values = run.curve("eval/return", seed=1, peer=1)
    assert steps == [256, 512] and values[-1] == evaluated[-1].value
    best = max(evaluated, key=lambda row: row.value)
    learner = run.best_policy.stem.removesuffix("-best")  # its last policy may be as good
    assert learner == f"seed{best.seed}-peer{best.peer}"
    assert isinstance(run.load(), Policy)
    with pytest.raises(BadInput, match=r"no metric 'eval/retrun'; known: .*eval/return"):
        run.curve("eval/retrun", seed=0)
    assert run.settings["total_steps"] == 512 and len(run.figures) > 5
    assert run.sizes == ()


def test_evaluate_compare_and_groups_return_what_json_has(
    run: TrainOutcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(run.last_policies[0])
    assert main(["evaluate", file, "--episodes", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    evaluated = dpd.evaluate(file, episodes=2)
    assert evaluated.data == printed and evaluated.policies[0].returns == printed[0]["returns"]
    assert evaluated.differences == ()

    paths, png = [str(p) for p in run.last_policies[:2]], tmp_path / "c.png"
    compared = dpd.compare(*paths, episodes=2, out=png)
    first, second = compared.runs
    (gap,) = compared.differences
    assert gap.mean == pytest.approx(second.mean - first.mean) and gap.verdict == "too few seeds"
    assert first.scores == [first.mean] and compared.curves is None and compared.notes

    named = dpd.groups("Swimmer-v5").groups
    assert [(row.group, row.columns) for row in named][:1] == [("qpos", "0:3")]
    assert sum(row.size for row in named) == 8
    assert capsys.readouterr().out == ""


def test_every_refusal_of_the_command_line_is_bad_input(run: TrainOutcome) -> None:
    with pytest.raises(BadInput, match="--episodes must be at least 1, not 0"):
        dpd.evaluate(run.path, episodes=0)
    with pytest.raises(BadInput, match="HalfCheetah-v5"):
        dpd.train("HalfCheeta-v5")
    with pytest.raises(BadInput, match="does not exist"):
        dpd.report("/nowhere/run")


def test_watch_returns_the_progress_of_runs_and_the_returns_of_learners(
    run: TrainOutcome, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = dpd.watch(run.path.parent)
    (progress,) = watched.runs
    assert (progress.path, progress.state, progress.env) == (run.path, "finished", "Swimmer-v5")
    assert (progress.step, progress.total, progress.seconds_left) == (512, 512, None)
    last = [row for row in run.metrics if row.metric == "eval/return" and row.step == 512]
    assert progress.mean == pytest.approx(sum(row.value for row in last) / 4)
    assert [row.mean for row in watched.learners] == [row.value for row in last]
    assert [row.learner for row in watched.learners] == [f.stem for f in run.last_policies]
    first = watched.learners[0]
    assert first.best == max(run.curve("eval/return", seed=0)[1])
    assert first.metrics["train/kl"] == run.curve("train/kl", seed=0)[1][-1]
    assert [figure.axes[0].get_title("left") for figure in watched.figures] == ["eval/return"]
    assert capsys.readouterr().out == ""
    dpd.watch(run.path, verbose=True)
    assert "512/512 steps" in capsys.readouterr().out
    with pytest.raises(BadInput, match="--every does nothing without verbose=True"):
        dpd.watch(run.path, every=1.0)


def test_push_previews_the_card_with_the_returns_of_evaluate(
    run: TrainOutcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("huggingface_hub", reason="no huggingface_hub: pip install 'dpd[hub]'")
    done = dpd.push(run.path, "me/swimmer", preview=tmp_path / "card", episodes=2)
    assert done.url is None and done.folder == tmp_path / "card"
    assert done.card == (done.folder / "README.md").read_text()
    assert {"README.md", "policy.safetensors", "config.json"} < set(done.files)
    evaluated = dpd.evaluate(run.path, episodes=2)
    assert [row.returns for row in done.policies] == [row.returns for row in evaluated.policies]
    assert done.policies[0].policy == "seed0-peer0" and capsys.readouterr().out == ""


def test_a_search_takes_a_dictionary_as_its_space_and_returns_trials_and_the_best_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'dpd[tune]'")
    flags = "--n-envs 2 --n-steps 64 --minibatch-size 64 --epochs 1 --hidden 8 --threads 1"
    space = {"gamma": [0.9, 0.95], "distill": {"alpha": {"low": 1.0, "high": 2.0}}}
    few: dict[str, Any] = {"seeds": 1, "total_steps": 512, "evals": 2, "eval_episodes": 1}
    few |= {"trials": 2, "pruner": "none", "out": tmp_path / "tune"}
    search = dpd.tune("Swimmer-v5", space=space, flags=flags, **few)
    assert {row.trial for row in search.trials} == {0, 1}
    first, second = (row.mean or 0.0 for row in search.trials)
    assert first >= second and all(row.state == "complete" for row in search.trials)
    best = search.trials[0]
    assert best.mean == best.evaluations[-1] and len(best.evaluations) == 2
    assert search.settings["gamma"] == best.values["gamma"]
    assert search.settings["distill"]["alpha"] == best.values["distill.alpha"]
    assert "seeds" not in search.settings and search.best.is_file()
    alpha = best.values["distill.alpha"]
    chosen = ["--gamma", str(best.values["gamma"]), "--distill.alpha", str(alpha)]
    assert list(search.flags) == [*flags.split(), *chosen]
    assert len(search.figures) == 2 and search.page == tmp_path / "tune" / "tune.html"
    assert capsys.readouterr().out == ""
    with pytest.raises(BadInput, match=r"space: gamma needs \{ low = "):
        dpd.tune("Swimmer-v5", space={"gamma": 0.9}, out=tmp_path / "no")


def test_export_returns_the_file(run: TrainOutcome, tmp_path: Path) -> None:
    done = dpd.export(run.best_policy, "torchscript", out=tmp_path / "p.pt")
    assert done.path == tmp_path / "p.pt" and done.bytes == done.path.stat().st_size


def test_distilled_students_are_audited(run: TrainOutcome, tmp_path: Path) -> None:
    short = {k: v for k, v in SHORT.items() if k not in ("hidden", "epochs")}
    students = dpd.distill(
        "Swimmer-v5",
        teacher=run.best_policy,
        student_sizes=[4, 8],
        distill={"steps": 4},
        out=tmp_path / "students",
        **short,
    )
    assert [row.name for row in students.sizes] == ["4x4", "8x8"]
    assert students.sizes[0].parameters < students.sizes[1].parameters
    audited = dpd.fidelity(
        run.best_policy, *students.last_policies, episodes=2, states=200, out=tmp_path / "audit"
    )
    assert [row.name for row in audited.students] == ["seed0-4x4", "seed0-8x8"]
    errors = [s for s in audited.scores if s.measure == "action_error" and s.states == "heldout"]
    assert [s.student for s in errors] == ["seed0-4x4", "seed0-8x8"]
    assert all(s.value is not None and s.value > 0 for s in errors)
    assert audited.page == tmp_path / "audit" / "fidelity.html" and audited.page.is_file()


def test_cooperation_returns_gains_and_lessons(run: TrainOutcome, tmp_path: Path) -> None:
    few: dict[str, Any] = {"probes": 4, "probe_envs": 1, "probe_steps": 50, "horizon": 5}
    few |= {"steps": 5, "rounds": 1, "episodes": 1, "trial_episodes": 0, "counterfactuals": False}
    done = dpd.cooperate(*run.last_policies[:2], out=tmp_path / "co", threads=1, **few)
    assert [row.path.is_file() for row in done.policies] == [True, True]
    gains = [(row.gain, (row.after or 0) - row.before) for row in done.policies]
    assert all(gain == pytest.approx(difference) for gain, difference in gains)
    assert {(row.round, row.teacher, row.student) for row in done.lessons} == {(1, 0, 1), (1, 1, 0)}
    with pytest.raises(BadInput, match="all 1 rounds are done"):
        dpd.cooperate(resume=tmp_path / "co")


def test_a_study_returns_arms_and_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    flags = "--n-envs 2 --n-steps 64 --minibatch-size 64 --epochs 1 --evals 1 --hidden 8 "
    flags += "--eval-episodes 1 --final-episodes 1 --threads 1"
    few: dict[str, Any] = {"seeds": 2, "total_steps": 256, "episodes": 1, "threads": 1}
    done = dpd.study("Swimmer-v5", arms="independent", flags=flags, out=out, **few)
    assert [row.run for row in done.arms] == ["dpd", "independent"]
    (gap,) = done.differences
    assert (gap.name, gap.minus) == ("dpd", "independent")
    assert gap.mean == pytest.approx(done.arms[0].mean - done.arms[1].mean)
    assert done.page == out / "study.html" and capsys.readouterr().out == ""
    (plan,) = dpd.study(plan=50.0, out=out).plans
    assert plan.arm == "independent" and plan.low <= plan.seeds <= plan.high


def test_a_run_that_diverges_or_is_interrupted_raises(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for status, kind, says in (
        (3, Diverged, "on_nan='rollback'"),
        (130, KeyboardInterrupt, "continues it"),
        (1, RuntimeError, "status 1"),
    ):
        monkeypatch.setattr("dpd.run.train.train", lambda *_, status=status: status)
        with pytest.raises(kind, match=says):
            dpd.train(out=tmp_path / "none")
