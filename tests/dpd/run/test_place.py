"""Where a policy acts: its environment with keyword arguments, the same in every command."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from stable_baselines3 import PPO

import dpd.evaluate as evaluation
import tests.toy.payload_env  # noqa: F401, registers environments
from dpd.cli import main
from dpd.cooperate.config import CooperateConfig
from dpd.cooperate.cooperation import read_policies
from dpd.envs.make import make
from dpd.errors import BadInput
from dpd.fidelity.config import SweepConfig
from dpd.fidelity.sweep import read_sweep_teacher
from dpd.policies import policyfile
from dpd.policies.config import ForeignConfig
from dpd.policies.policyfile import load
from dpd.run.sources import Place, place_of
from dpd.run.video import render_episode
from tests.toy.policies import described, learners
from tests.toy.runs import ENDS, STUDENT

ENV = "Payload-v0"
HEAVY: dict[str, Any] = {"payload": 2.5}
FLAG = ["--env-kwargs", json.dumps(HEAVY)]


@pytest.fixture(scope="module")
def zipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of a policy of an environment that shows five numbers."""
    env = gymnasium.make(ENV, payload=2.5, dims=5)
    small = {"net_arch": [4]}
    model = PPO("MlpPolicy", env, n_steps=20, batch_size=20, policy_kwargs=small, device="cpu")
    path = tmp_path_factory.mktemp("zip") / "model.zip"
    model.save(path)
    return path


def write(path: Path, env_id: str = ENV, seed: int = 0, **env_kwargs: Any) -> Path:
    """Write a policy of ours that was trained with some arguments."""
    dims = env_kwargs.get("dims", 3)
    agent = learners("ppo", dims, 2)
    meta = described("ppo", agent, env_id=env_id, env_kwargs=env_kwargs, provenance={"seed": seed})
    tensors = dict(agent.export(seed)) | policyfile.bounds(make(ENV, 1, [0]).spec)
    policyfile.save(path, tensors, meta)
    return path


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy file that says a payload of 2.5."""
    return write(tmp_path_factory.mktemp("heavy") / "heavy.safetensors", **HEAVY)


def returns(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> list[dict[str, Any]]:
    """Evaluate, and return the rows of JSON."""
    words = ["evaluate", *map(str, argv), "--episodes", "2", "--json"]
    assert main(words) == 0, capsys.readouterr().err
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def refusal(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    assert main([*map(str, argv)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_zip_is_evaluated_with_the_arguments_that_are_given(zipped: Path, capsys: Any) -> None:
    kwargs = {"payload": 2.5, "dims": 5}
    (row,) = returns(capsys, zipped, "--env", ENV, "--env-kwargs", json.dumps(kwargs))
    assert row["returns"] == [50.0, 50.0]  # 20 steps worth 2.5 each
    assert (row["env"], row["env_kwargs"]) == (ENV, kwargs)
    (row,) = returns(capsys, zipped, "--env", ENV, "--env-kwargs", '{"dims": 5}')
    assert row["returns"] == [20.0, 20.0]
    said = refusal(capsys, "evaluate", zipped, "--env", ENV)  # which shows three numbers
    assert "reads 5 observations" in said and "has 3 and 2" in said


def test_an_export_keeps_the_arguments(
    zipped: Path, heavy: Path, tmp_path: Path, capsys: Any
) -> None:
    kwargs = {"payload": 2.5, "dims": 5}
    words = ["--env", ENV, "--env-kwargs", json.dumps(kwargs), "--format", "dpd"]
    out = tmp_path / "p.safetensors"
    assert main(["export", str(zipped), *words, "--out", str(out)]) == 0
    assert load(out).meta.env_kwargs == kwargs
    capsys.readouterr()
    assert returns(capsys, out)[0]["returns"] == [50.0, 50.0]
    # of a policy of ours, arguments that are given replace its own
    other = tmp_path / "o.safetensors"
    words = ["--env-kwargs", '{"payload": 0.5}', "--format", "dpd", "--out", str(other)]
    assert main(["export", str(heavy), *words]) == 0
    capsys.readouterr()
    assert returns(capsys, other)[0]["returns"] == [10.0, 10.0]
    out = tmp_path / "x.safetensors"
    words = ["--env", "Unladen-v0", "--format", "dpd", "--out", str(out)]
    assert "would drop" in refusal(capsys, "export", heavy, *words)
    assert main(["export", str(heavy), *words, "--env-kwargs", "{}"]) == 0
    assert (load(out).meta.env_id, load(out).meta.env_kwargs) == ("Unladen-v0", {})


def test_own_arguments_are_not_dropped_unnoticed(heavy: Path, capsys: Any) -> None:
    assert returns(capsys, heavy)[0]["returns"] == [50.0, 50.0]
    assert returns(capsys, heavy, "--env", ENV)[0]["returns"] == [50.0, 50.0]
    said = refusal(capsys, "evaluate", heavy, "--env", "Unladen-v0")
    assert 'was trained in Payload-v0 {"payload": 2.5}' in said and "--env-kwargs '{}'" in said
    for given, expected in (("{}", 20.0), ('{"payload": 2.5}', 50.0), ('{"payload": 4}', 80.0)):
        (row,) = returns(capsys, heavy, "--env", "Unladen-v0", "--env-kwargs", given)
        assert row["returns"] == [expected] * 2
        assert (row["env"], row["env_kwargs"]) == ("Unladen-v0", json.loads(given))


def test_rows_of_unlike_arguments_are_told_apart(heavy: Path, tmp_path: Path, capsys: Any) -> None:
    light = write(tmp_path / "light.safetensors")
    first, second = returns(capsys, light, heavy)
    assert (first["mean"], second["mean"]) == (20.0, 50.0)
    assert main(["evaluate", str(light), str(heavy), "--episodes", "1"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert 'Payload-v0{"payload":2.5}' in shown


def test_the_video_is_of_the_environment_of_the_table(
    heavy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    seen: list[Place] = []
    monkeypatch.setattr(evaluation, "record_video", lambda policy, place, *_: seen.append(place))
    video = ["--video", str(tmp_path / "x.mp4")]
    for given in ([], ["--env", "Unladen-v0", "--env-kwargs", '{"payload": 4}']):
        (row,) = returns(capsys, heavy, *given, *video)
        assert seen.pop() == (row["env"], row["env_kwargs"])
    frames, _ = render_episode(load(heavy), Place("Unladen-v0", {"payload": 4}), 0)
    assert len(frames) == 21 and frames[0].max() == 200  # a frame is as bright as 50 payloads


def test_a_student_is_distilled_in_the_environment_of_its_teacher(
    zipped: Path, tmp_path: Path, capsys: Any
) -> None:
    kwargs = {"payload": 2.5, "dims": 5}
    argv = ["distill", ENV, "--teacher", str(zipped), "--env-kwargs", json.dumps(kwargs)]
    argv += [
        *STUDENT,
        *ENDS,
        "--evals",
        "1",
        "--total-steps",
        "128",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(argv) == 0, capsys.readouterr().err
    said = json.loads((tmp_path / "run" / "teachers" / "returns.json").read_text())
    assert set(said["teachers"][0]) == {50.0}
    for name in ("teachers/teacher00000", "policies/seed0-peer0"):
        assert load(tmp_path / "run" / f"{name}.safetensors").meta.env_kwargs == kwargs


def test_a_run_does_not_drop_its_teachers_arguments(
    heavy: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal(capsys, "distill", ENV, "--teacher", heavy)
    assert "but this run has no arguments" in said and "--env-kwargs '{\"payload\": 2.5}'" in said
    assert not list(tmp_path.iterdir())


def test_fidelity_plays_everyone_with_the_teachers_arguments(
    heavy: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    light = write(tmp_path / "light.safetensors", seed=1)
    few = ["--episodes", "2", "--states", "20", "--json"]
    said = refusal(capsys, "fidelity", heavy, light, *few)
    assert "was trained in Payload-v0, but heavy, its teacher, acts in" in said
    assert "choose the arguments with --env-kwargs" in said
    for given, expected in (('{"payload": 2.5}', 50.0), ("{}", 20.0)):
        argv = ["fidelity", str(heavy), str(light), "--env-kwargs", given, *few]
        assert main(argv) == 0, capsys.readouterr().err
        found = json.loads(capsys.readouterr().out)
        assert found["env_kwargs"] == json.loads(given)
        assert found["teacher"]["returns"] == [expected, expected]


def test_a_sweep_plays_its_teacher_with_the_arguments(zipped: Path, heavy: Path) -> None:
    kwargs = {"payload": 2.5, "dims": 5}
    foreign = ForeignConfig(env=ENV, env_kwargs=json.dumps(kwargs))
    teacher, setting = read_sweep_teacher(SweepConfig(teacher=zipped, foreign=foreign))
    assert (setting.env_id, setting.env_kwargs) == (ENV, kwargs)
    assert teacher.policy.meta.env_kwargs == kwargs
    _, setting = read_sweep_teacher(SweepConfig(teacher=heavy))
    assert setting.env_kwargs == HEAVY
    with pytest.raises(BadInput, match="would drop"):
        read_sweep_teacher(SweepConfig(teacher=heavy, foreign=ForeignConfig(env="Unladen-v0")))


def test_cooperation_refuses_policies_of_unlike_arguments(tmp_path: Path) -> None:
    names = ("plain.safetensors", "changed.safetensors", "same.safetensors")
    plain, changed, same = (tmp_path / name for name in names)
    double = {"forward_reward_weight": 2.0}
    for file, kwargs in ((plain, {}), (changed, double), (same, double)):
        agent = learners("ppo", 17, 6)
        meta = described("ppo", agent, env_id="HalfCheetah-v5", env_kwargs=kwargs)
        bounds = policyfile.bounds(make("HalfCheetah-v5", 1, [0]).spec)
        policyfile.save(file, dict(agent.export(0)) | bounds, meta)
    with pytest.raises(BadInput, match=r"changed was trained in .*, but plain in HalfCheetah-v5;"):
        read_policies(CooperateConfig(paths=(plain, changed)))
    subjects, place = read_policies(CooperateConfig(paths=(changed, same)))
    assert place == ("HalfCheetah-v5", double) and len(subjects) == 2
    given = ForeignConfig(env_kwargs="{}")
    subjects, place = read_policies(CooperateConfig(paths=(plain, changed), foreign=given))
    assert place == ("HalfCheetah-v5", {})
    assert [subject.policy.meta.env_kwargs for subject in subjects] == [{}, {}]


def test_a_place_is_as_asked_or_as_trained(heavy: Path) -> None:
    policy = load(heavy)
    assert place_of("p", policy, ForeignConfig()) == (ENV, HEAVY)
    assert place_of("p", policy, ForeignConfig(env_kwargs="{}")) == (ENV, {})
    with pytest.raises(BadInput, match="not JSON"):
        ForeignConfig(env_kwargs="{")
    with pytest.raises(BadInput, match="JSON object"):
        ForeignConfig(env_kwargs="[]")
