"""A run uses compiled kernels where there are some, and says in one line where it does not."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpd.cli import main, parse_train
from dpd.run import updates
from dpd.run.processes import share
from dpd.run.train import make_training
from dpd.run.updates import update_plan, why_no_numba, why_not_fused

pytestmark = pytest.mark.usefixtures("no_report")
FEW = ["Swimmer-v5", "--n-envs", "2", "--n-steps", "64", "--hidden", "8", "8"]
ENDS = ["--total-steps", "768", "--evals", "1", "--eval-episodes", "1", "--final-episodes", "1"]


@pytest.fixture
def no_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "numba", None)
    why_no_numba.cache_clear()
    yield
    why_no_numba.cache_clear()


def logged_updates(run_dir: Path) -> list[float]:
    """Return what the updates of a run logged."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        kept = ("loss/", "train/", "distill/", "share/", "eval/")
        return [float(r["value"]) for r in csv.DictReader(file) if r["metric"].startswith(kept)]


@pytest.mark.parametrize(
    "flags",
    [
        ["--preset", "paper"],
        ["--preset", "modern"],
        ["--preset", "modern", "--distill.states", "samples"],
        ["--method", "none", "--peers", "1", "--reuse-iterations", "2"],
    ],
    ids=["paper", "modern", "a leash at the samples", "own past"],
)
def test_a_run_by_kernels_logs_what_one_by_torch_logs(flags: list[str], tmp_path: Path) -> None:
    for kernels in ("auto", "torch"):
        where = [*flags, "--kernels", kernels, "--out", str(tmp_path / kernels)]
        assert main(["train", *FEW, *ENDS, *where]) == 0
    by_kernels, by_torch = logged_updates(tmp_path / "auto"), logged_updates(tmp_path / "torch")
    assert by_kernels == pytest.approx(by_torch, rel=2e-3, abs=2e-4)


@pytest.mark.parametrize(
    "flags",
    [
        ["--algo", "sac"],
        ["--algo", "td3", "--method", "none"],
        ["--algo", "sac", "--preset", "modern", "--share-experience"],
    ],
)
def test_learners_with_a_replay_log_the_same_by_kernels(flags: list[str], tmp_path: Path) -> None:
    few = ["Swimmer-v5", "--n-steps", "16", "--hidden", "8", "8", "--learning-starts", "64"]
    ends = ["--total-steps", "256", *ENDS[2:], "--minibatch-size", "16", "--capacity", "1000"]
    for kernels in ("auto", "torch"):
        where = ["--kernels", kernels, "--out", str(tmp_path / kernels)]
        assert main(["train", *few, *ends, *flags, *where]) == 0
    by_kernels, by_torch = logged_updates(tmp_path / "auto"), logged_updates(tmp_path / "torch")
    assert by_kernels == pytest.approx(by_torch, rel=2e-3, abs=2e-4)


def test_peers_that_share_experience_say_how_much_of_it_counts(tmp_path: Path) -> None:
    run = ["--preset", "modern", "--share-experience", "--peers", "3", "--distill.target-kl", "0.2"]
    assert main(["train", *FEW, *ENDS, *run, "--out", str(tmp_path / "run")]) == 0
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("share/ess", "share/weight", "distill/kl", "distill/coef"):
        values = [(row["peer"], float(row["value"])) for row in rows if row["metric"] == name]
        assert {peer for peer, _ in values} == {"0", "1", "2"} and all(x >= 0 for _, x in values)
        if name.startswith("share/"):
            assert all(0 < x <= 1 for _, x in values)


def test_a_run_may_go_on_by_the_other_code(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert main(["train", *FEW, *ENDS, "--kernels", "torch", *out]) == 0
    go_on = ["--kernels", "auto", "--total-steps", "1024"]
    assert main(["train", "--resume", str(tmp_path / "run"), *go_on]) == 0


@pytest.mark.parametrize(
    ("flags", "plan"),
    [
        ([], "fused kernels"),
        (["--kernels", "torch"], "torch (--kernels torch)"),
        (["--algo", "sac"], "fused kernels"),
        (["--algo", "td3", "--method", "none"], "fused kernels"),
        (
            ["--algo", "sac", "--extra-policy-updates", "1", "--method", "none"],
            "torch (there are no kernels for extra_policy_updates)",
        ),
        (
            ["--algo", "sac", "--distill.dose", "loss"],
            "torch (there are no kernels for a loss of method dpd with sac)",
        ),
        (["--algo", "sac", "--share-experience"], "fused kernels"),
        (
            ["--algo", "td3", "--share-experience", "--norm-obs"],
            "torch (there are no kernels for share_experience with norm_obs or a view)",
        ),
        (["--device", "cuda"], "torch (kernels are for the CPU)"),
        (
            ["--algo", "ppo,sac", "--method", "none", "--peer1.extra-policy-updates", "1"],
            "ppo: fused kernels; sac: torch (there are no kernels for extra_policy_updates)",
        ),
    ],
)
def test_the_start_table_says_what_computes_the_updates(flags: list[str], plan: str) -> None:
    assert update_plan(parse_train(["Swimmer-v5", *flags])) == plan


def test_large_minibatches_of_few_learners_are_left_to_threads_of_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = ["Swimmer-v5", "--n-envs", "64", "--minibatch-size", "2048"]
    for cores, is_fused in ((2, True), (8, False)):
        monkeypatch.setattr(updates, "n_cores", lambda cores=cores: cores)
        config = parse_train(large)
        assert (why_not_fused(config, config.stacks[0]) is None) == is_fused


def test_the_start_table_of_a_shared_run_says_what_its_workers_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(updates, "n_cores", lambda: 8)
    large = ["--n-envs", "64", "--minibatch-size", "2048", "--seeds", "2", "--workers", "2"]
    config = parse_train(["Swimmer-v5", *large])
    monkeypatch.setattr("dpd.run.processes.n_cores", lambda: 8)
    # 2 learners of a worker on its 4 cores
    assert update_plan(config) == update_plan(share(config, 0)) and "torch" in update_plan(config)


@pytest.mark.parametrize("flags", [[], ["--student-sizes", "4,8x8"]])
def test_students_learn_the_same_by_kernels_and_by_torch(flags: list[str], tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    alone = ["--method", "none", "--peers", "1"]
    assert main(["train", *FEW, *ENDS, *alone, "--out", str(teacher)]) == 0
    for kernels in ("auto", "torch"):
        learn = ["--teacher", str(teacher), "--distill.steps", "4", "--kernels", kernels, *flags]
        argv = [*FEW[:5], *ENDS, *learn, "--out", str(tmp_path / kernels)]
        assert main(["distill", *argv]) == 0
    by_kernels, by_torch = logged_updates(tmp_path / "auto"), logged_updates(tmp_path / "torch")
    assert by_kernels == pytest.approx(by_torch, rel=2e-3, abs=2e-4)


def test_without_numba_one_line_says_how_to_get_it(
    no_numba: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *FEW, *ENDS, "--out", str(tmp_path / "run")]) == 0
    lines = [x for x in capsys.readouterr().out.splitlines() if "updates " in x]
    assert len(lines) == 1
    assert "torch (numba is not installed: pip install numba)" in lines[0]
    assert make_training(parse_train([*FEW, *ENDS])).stacks[0].agent.kernels is None


def test_the_command_line_does_not_import_numba() -> None:
    program = "import sys, dpd, dpd.cli, dpd.run.train; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
