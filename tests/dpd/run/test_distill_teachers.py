"""Teachers of any source, and what `dpd distill` refuses in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dpd
from dpd.cli import main, parse_run
from dpd.envs.make import check
from dpd.errors import BadInput
from dpd.fidelity.policies import n_parameters
from dpd.policies import policyfile
from dpd.policies.policyfile import Policy
from dpd.run.config import RunConfig, TeacherConfig
from dpd.run.teachers import foreign_settings, read_run_teacher
from tests.toy import policies as made
from tests.toy import zips as foreign
from tests.toy.runs import ENDS, STUDENT, distil, logged, run, train_teacher

OBS = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a teacher's run, its policies elsewhere, and policies of other kinds."""
    folder = tmp_path_factory.mktemp("teachers")
    train_teacher(folder / "run")
    shutil.copy(folder / "run/policies/seed0-peer0.safetensors", folder / "ppo.safetensors")
    ours = dpd.load(folder / "ppo.safetensors")
    write(folder / "bounds", Policy(ours.tensors | {"act_high": torch.full((2,), 2.0)}, ours.meta))
    write(folder / "hopper", made.saved(folder / "made", "ppo", "Hopper-v5"))
    write(folder / "sac", made.saved(folder / "made", "sac", "Swimmer-v5"))
    sizes = replace(dpd.load(folder / "hopper.safetensors").meta, env_id="Swimmer-v5")
    write(folder / "sizes", Policy(dpd.load(folder / "hopper.safetensors").tensors, sizes))
    return folder


def write(path: Path, policy: Policy) -> None:
    policyfile.save(path.with_suffix(".safetensors"), policy.tensors, policy.meta)


def test_a_zip_of_stable_baselines3_is_a_teacher(tmp_path: Path) -> None:
    path, model, _ = foreign.trained(tmp_path, "Swimmer-v5", policy_kwargs={"net_arch": [8, 8]})
    out = distil(tmp_path / "run", path, *STUDENT, steps=256)
    kept = dpd.load(out / "teachers/teacher00000.safetensors")
    assert foreign.largest_gap(kept, model, obs=OBS) < 1e-5


def test_a_zip_brings_its_normaliser(tmp_path: Path) -> None:
    path, model, norm = foreign.trained(tmp_path, "Swimmer-v5", normalise=True)
    npz = foreign.statistics(norm, tmp_path / "norm.npz")
    flags = ["--teacher-vecnormalize", str(npz), *STUDENT]
    out = distil(tmp_path / "run", path, *flags, steps=256)
    kept = dpd.load(out / "teachers/teacher00000.safetensors")
    assert foreign.largest_gap(kept, model, norm) < 1e-5


def test_a_teacher_that_squashes_teaches_plain_students_by_its_actions(
    files: Path, tmp_path: Path
) -> None:
    flags = ["--method", "bc", "--distill.divergence", "mse", *STUDENT]
    out = distil(tmp_path / "run", files / "sac.safetensors", *flags, steps=1024)
    error = logged(out, "distill/action_error")
    assert error[-1] < error[0]


def test_several_teachers_teach_students_of_several_sizes(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, teachers = tmp_path / "run", [str(files / "run"), str(files / "ppo.safetensors")]
    argv = ["distill", "Swimmer-v5", "--teacher", *teachers, *STUDENT, *ENDS]
    argv += ["--student-sizes", "4,32", "--seeds", "2", "--total-steps", "512"]
    capsys.readouterr()
    assert main([*argv, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "teacher 1" in said and "students by size, means and t intervals of 2 seeds" in said
    assert "students.png" in said and "distilling" in said.split("time  ")[1]
    kept = sorted(file.name for file in (out / "teachers").glob("*.safetensors"))
    assert kept == ["teacher00000.safetensors", "teacher00001.safetensors"]
    assert (out / "students.png").stat().st_size > 10_000
    found = json.loads((out / "fidelity.json").read_text())
    assert len(found["teachers"]) == 2
    # 8 numbers to 2 actions and their deviations: of the widths it has, not what it is padded to
    widths = (4, 32)
    expected = [8 * n + n + n * n + n + 2 * n + 2 + 2 for n in widths]
    assert [size["parameters"] for size in found["sizes"]] == expected
    # Teachers of 384 steps may be no better than random actions: then nothing is retained of them.
    got = np.mean([x for teacher in found["teachers"] for x in teacher["returns"]])
    is_better = got > found["random"]["return"]
    for each in (student for size in found["sizes"] for student in size["students"]):
        policy = dpd.load(out / f"policies/{each['policy']}.safetensors")
        assert n_parameters(policy) == each["parameters"] and each["latency_us"] > 0
        assert 0 <= each["agree"] <= 1 and (each["retained"] is not None) == is_better
    resumed = read_run_teacher(parse_run(["--resume", str(out)], "distill"), check("Swimmer-v5"))
    assert resumed is not None and len(resumed.policies) == 2
    run("--resume", str(out), "--total-steps", "1024")


def test_each_zip_may_have_statistics_of_its_own() -> None:
    given = TeacherConfig(
        teacher_vecnormalize=(Path("a.npz"), Path("b.npz")), teacher_activation="relu"
    )
    paths = [Path("one.zip"), Path("ours.safetensors"), Path("two.zip")]
    run = RunConfig(env="Swimmer-v5")
    one, ours, two = foreign_settings(paths, given, run)
    assert (one.vecnormalize, two.vecnormalize) == (Path("a.npz"), Path("b.npz"))
    assert one.activation == two.activation == "relu" and one.env == "Swimmer-v5"
    assert ours.vecnormalize is ours.activation is None
    shared = foreign_settings(paths, TeacherConfig(teacher_vecnormalize=(Path("a.npz"),)), run)
    assert [each.vecnormalize for each in shared] == [Path("a.npz"), None, Path("a.npz")]
    with pytest.raises(BadInput, match="has 2 files for 1 zips; give one for all, or one per"):
        foreign_settings(paths[:2], given, run)


def test_a_kept_teacher_that_is_gone_is_missed(files: Path, tmp_path: Path) -> None:
    out = distil(tmp_path / "run", files / "run", *STUDENT, steps=128)
    shutil.rmtree(out / "teachers")
    with pytest.raises(BadInput, match="teachers contains no teacher"):
        read_run_teacher(parse_run(["--resume", str(out)], "distill"), check("Swimmer-v5"))


# --- Bad input ---

PROGRESSIVE = ["--method", "progressive"]
BAD: dict[str, tuple[list[str], str]] = {
    "no teacher": (["Swimmer-v5"], "dpd distill needs --teacher PATH"),
    "no such file": (["Swimmer-v5", "--teacher", "/nowhere"], "/nowhere does not exist"),
    "another environment": (
        ["Swimmer-v5", "--teacher", "{hopper}"],
        "trained in Hopper-v5, but this run uses Swimmer-v5; give dpd distill Hopper-v5",
    ),
    "other sizes": (["Swimmer-v5", "--teacher", "{sizes}"], "Swimmer-v5 has 8 and 2"),
    "other bounds": (
        ["Swimmer-v5", "--teacher", "{bounds}"],
        "the teacher acts within other bounds than Swimmer-v5: act_high is [2.0, 2.0]",
    ),
    "no history": (
        ["Swimmer-v5", "--teacher", "{ppo}", *PROGRESSIVE],
        "train the teacher with dpd train --keep-checkpoints",
    ),
    "two histories": (
        ["Swimmer-v5", "--teacher", "{ppo}", "{ppo}", *PROGRESSIVE],
        "follows the checkpoints of one teacher; give one",
    ),
    "squashing and not": (
        ["Swimmer-v5", "--teacher", "{ppo}", "{sac}", "--distill.divergence", "mse"],
        "some teachers squash their actions and some do not",
    ),
    "KL of a squashing teacher": (
        ["Swimmer-v5", "--teacher", "{sac}"],
        "the teacher squashes its actions and these students do not; give --distill.divergence",
    ),
    "a setting of zips": (
        ["Swimmer-v5", "--teacher", "{ppo}", "--teacher-activation", "relu"],
        "activation is for Stable-Baselines3 zips",
    ),
    "a method of dpd train": (["--method", "dpd", "--teacher", "{ppo}"], "belongs to dpd train"),
    "an algorithm that bc does not move": (
        ["--method", "bc", "--algo", "ppo", "--teacher", "{ppo}"],
        "this method teaches --algo student, not ppo",
    ),
    "a student that reinforcement should move": (
        ["--method", "ppd", "--algo", "student", "--teacher", "{ppo}"],
        "this method teaches --algo ppo, not student",
    ),
    "KL to TD3": (
        ["--method", "kickstart", "--algo", "td3", "--teacher", "{ppo}"],
        "give --distill.divergence mse",
    ),
    "learners without what the method sets": (
        ["--method", "n-distill", "--algo", "sac", "--teacher", "{ppo}"],
        "this method teaches --algo ppo, not sac",
    ),
    "normalised advantages": (
        ["--method", "n-distill", "--norm-adv", "--teacher", "{ppo}"],
        "leave --norm-adv off",
    ),
    "sizes that are no words": (["--student-sizes", "4,8x", "--teacher", "{ppo}"], "not '8x'"),
    "a size of nothing": (["--student-sizes", "4,,8", "--teacher", "{ppo}"], "not ''"),
    "sizes of two algorithms": (
        [
            "--method",
            "kickstart",
            "--algo",
            "ppo,sac",
            "--student-sizes",
            "4",
            "--teacher",
            "{ppo}",
        ],
        "--student-sizes needs a single algorithm",
    ),
    "more sizes than peers": (
        ["--student-sizes", "4,8", "--peers", "3", "--teacher", "{ppo}"],
        "--sizes has 2 values for 3 students",
    ),
    "an unknown method": (["--method", "dager", "--teacher", "{ppo}"], "did you mean dagger"),
}


@pytest.mark.parametrize(("argv", "says"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_line_and_leaves_nothing_behind(
    argv: list[str],
    says: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {path.stem: str(path) for path in files.glob("*.safetensors")}
    given = [word.format(**names) for word in argv]
    capsys.readouterr()
    assert main(["distill", *given]) == 2
    said = capsys.readouterr().err
    assert says in said and said.startswith("dpd: ") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--method", "bc"], "method bc belongs to dpd distill"),
        (["--algo", "student"], "students learn from a teacher alone; see dpd distill --help"),
        (["--algo", "ppo,student", "--method", "none"], "see dpd distill --help"),
        (["--teacher", "p.safetensors"], "--teacher"),
    ],
)
def test_what_belongs_to_dpd_distill_is_refused_by_dpd_train(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *argv]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_run_of_the_other_command_is_refused_with_the_right_one(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = files / "run"
    distilled = distil(tmp_path / "a run", trained, *STUDENT, steps=128)
    capsys.readouterr()
    for command, other, path in (("distill", "train", trained), ("train", "distill", distilled)):
        assert main([command, "--resume", str(path)]) == 2
        said = capsys.readouterr().err
        assert f"{path} is a run of dpd {other}; resume it with dpd {other} --resume " in said
        assert said.count("\n") == 1
    assert f"--resume '{distilled}'" in said  # as a shell reads it


def test_a_run_that_goes_on_keeps_its_teacher_and_its_sizes(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = distil(tmp_path / "run", files / "run", *STUDENT, steps=128)
    for flags, says in (
        (["--teacher", str(files / "ppo.safetensors")], "--teacher would change"),
        (["--student-sizes", "8"], "leave --student-sizes out"),
        (["--method", "bc"], "leave --method out"),
        (["--distill.steps", "5"], "--distill would change"),
    ):
        capsys.readouterr()
        assert main(["distill", "--resume", str(out), *flags]) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1
