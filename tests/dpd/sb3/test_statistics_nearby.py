"""Find the statistics and arguments that a zip lacks in the files around it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import tests.toy.payload_env  # noqa: F401, registers environments
from dpd.cli import main
from dpd.errors import BadInput
from dpd.policies.config import NO_STATISTICS
from dpd.sb3.statistics import find_statistics
from dpd.sb3.zip import load_zip
from tests.toy.zips import foreign, statistics

ENV = "Payload-v0"
KINDS = [PPO, SAC, TD3, DDPG]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def checkpoints(request, tmp_path_factory):
    """Return the files that CheckpointCallback writes in training with VecNormalize."""
    folder = tmp_path_factory.mktemp("checkpoints")
    norm = VecNormalize(make_vec_env(ENV, seed=0))
    short = {"n_steps": 20, "batch_size": 20} if request.param is PPO else {"buffer_size": 100}
    net = {"net_arch": [4]}
    model = request.param("MlpPolicy", norm, device="cpu", seed=0, policy_kwargs=net, **short)
    model.learn(40, callback=CheckpointCallback(20, str(folder), save_vecnormalize=True))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A zip that was trained without VecNormalize."""
    model = SAC("MlpPolicy", gymnasium.make(ENV), buffer_size=9, policy_kwargs={"net_arch": [4]})
    path = tmp_path_factory.mktemp("plain") / "model.zip"
    model.save(path)
    return path


def refusal(path: Path, env_id: str = ENV) -> str:
    with pytest.raises(BadInput) as caught:
        load_zip(path, foreign(env_id))
    return str(caught.value)


def test_a_checkpoint_is_not_read_without_its_own_statistics(checkpoints):
    for steps in (20, 40):
        path = checkpoints / f"rl_model_{steps}_steps.zip"
        own = checkpoints / f"rl_model_vecnormalize_{steps}_steps.pkl"
        assert find_statistics(path, ENV)[0] == own
        assert f"give --vecnormalize {own}, or --vecnormalize none" in refusal(path)
        normalised = load_zip(path, foreign(ENV, vecnormalize=own))
        plain = load_zip(path, foreign(ENV, vecnormalize=NO_STATISTICS))
        assert normalised.meta.norm_obs and not plain.meta.norm_obs


LAYOUTS: dict[str, tuple[str, str]] = {
    "the zoo's": (
        "sac/Payload-v0_1/Payload-v0.zip",
        "sac/Payload-v0_1/Payload-v0/vecnormalize.pkl",
    ),
    "its best": ("sac/Payload-v0_1/best_model.zip", "sac/Payload-v0_1/Payload-v0/vecnormalize.pkl"),
    "its best of another version": (
        "a/Payload-v3_12/best_model.zip",
        "a/Payload-v3_12/Payload-v3/v.pkl",
    ),
    "without a run's number": ("sac/best_model.zip", "sac/Payload-v9/vecnormalize.pkl"),
    "the hub's": ("sac-Payload-v0.zip", "vec_normalize.pkl"),
    "the best in a folder of its own": ("best_model/best_model.zip", "vec_normalize.pkl"),
    "EvalCallback's": ("best_model.zip", "vecnormalize.pkl"),
    "a name of its own": ("model.zip", "statistics.pkl"),
    "no ending": ("model.zip", "vec_normalize"),
    "converted": ("model.zip", "vecnormalize.npz"),
    "converted under another name": ("model.zip", "numbers.npz"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_are_found_in_every_layout(checkpoints, layout, tmp_path, monkeypatch):
    zip_name, file_name = LAYOUTS[layout]
    path, file = tmp_path / zip_name, tmp_path / file_name
    for folder in (path.parent, file.parent):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(checkpoints / "rl_model_20_steps.zip", path)
    if file.suffix == ".npz":
        norm = VecNormalize(make_vec_env(ENV))
        statistics(norm, file)
    else:
        shutil.copy(checkpoints / "rl_model_vecnormalize_20_steps.pkl", file)
    assert f"--vecnormalize {file}" in refusal(path)
    assert load_zip(path, foreign(ENV, vecnormalize=file)).meta.norm_obs
    monkeypatch.chdir(path.parent)  # likewise for a path without folders
    assert "VecNormalize statistics" in refusal(Path(path.name))


def test_files_that_are_no_statistics_do_not_disturb(checkpoints, tmp_path):
    path = tmp_path / "model.zip"
    shutil.copy(checkpoints / "rl_model_20_steps.zip", path)
    (tmp_path / "replay_buffer.pkl").write_bytes(b"\x80\x04\x8c\x0cReplayBuffer.")
    np.savez(tmp_path / "evaluations.npz", timesteps=[1], results=[[1.0]])
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "vecnormalize.yml").write_text("no statistics")
    (tmp_path / "Hopper-v5").mkdir()  # of another task
    (tmp_path / "Hopper-v5" / "vecnormalize.pkl").write_bytes(b"\x80\x04N.")
    assert find_statistics(path, ENV) == []


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [
        ("normalize: true\n", True),
        ("normalize: false\n", False),
        ("!!python/object/apply:collections.OrderedDict\n- - - n_steps\n    - 8\n"
         "  - - normalize\n    - true\n", True),
        ("- - - normalize\n    - '{''norm_obs'': True, ''norm_reward'': False}'\n", True),
        ("- - - normalize\n    - false\n", False),
        ("- - - policy\n    - MlpPolicy\n", False),
        ("", False),
    ],
)  # fmt: skip
def test_settings_of_the_zoo_that_tell_of_lost_statistics_count(plain, tmp_path, text, is_refused):
    path, config = tmp_path / "sac-Payload-v0.zip", tmp_path / "config.yml"
    shutil.copy(plain, path)
    config.write_text(text)
    if is_refused:
        assert f"{config} has normalize" in refusal(path)
    else:
        assert not load_zip(path, foreign(ENV)).meta.norm_obs
    assert not load_zip(path, foreign(ENV, vecnormalize=NO_STATISTICS)).meta.norm_obs


@pytest.mark.parametrize(
    ("name", "text", "is_refused"),
    [
        ("args.yml", 'algo: "sac"\nenv_kwargs: {"payload": 2.5}\n', True),
        ("args.yml", "- - - algo\n    - sac\n  - - env_kwargs\n    - payload: 2.5\n", True),
        ("args.yml", "- - - algo\n    - sac\n  - - env_kwargs\n    - null\n", False),
        ("args.yml", "env_kwargs: {}\n", False),
    ],
)
def test_arguments_of_the_environment_that_the_zoo_noted_are_asked_for(
    plain, tmp_path, name, text, is_refused
):
    path = tmp_path / "sac-Payload-v0.zip"
    shutil.copy(plain, path)
    (path.parent / name).write_text(text)
    if is_refused:
        said = refusal(path)
        assert "payload" in said and "--env-kwargs" in said and "2.5" in said
    else:
        assert load_zip(path, foreign(ENV)).meta.env_kwargs == {}
    given = foreign(ENV, env_kwargs='{"payload": 2.5}')
    assert load_zip(path, given).meta.env_kwargs == {"payload": 2.5}
    assert load_zip(path, foreign(ENV, env_kwargs="{}")).meta.env_kwargs == {}


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory):
    """Two zips of HalfCheetah, each with a normaliser beside it."""
    folder, made = tmp_path_factory.mktemp("cheetah"), []
    for k in range(2):
        norm = VecNormalize(make_vec_env("HalfCheetah-v5", seed=k))
        norm.reset()
        small = {"net_arch": [4]}
        model = SAC("MlpPolicy", norm, seed=k, buffer_size=9, policy_kwargs=small, device="cpu")
        (folder / str(k)).mkdir()
        model.save(folder / str(k) / "model.zip")
        norm.save(str(folder / str(k) / "vec_normalize.pkl"))
        made.append(folder / str(k) / "model.zip")
    return made


COMMANDS: dict[str, Callable[[str, str], list[str]]] = {
    "evaluate": lambda a, b: ["evaluate", a],
    "export": lambda a, b: ["export", a, "--format", "dpd"],
    "fidelity": lambda a, b: ["fidelity", a, b],
    "sweep": lambda a, b: ["sweep", a],
    "cooperate": lambda a, b: ["cooperate", a, b],
}
DISTIL = ["distill", "HalfCheetah-v5", "--teacher"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_reads_a_zip_refuses_one_whose_normaliser_is_not_named(
    command, cheetah, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    argv = COMMANDS[command](*map(str, cheetah))
    assert main([*argv, "--env", "HalfCheetah-v5"]) == 2
    said = capsys.readouterr().err
    assert f"--vecnormalize {cheetah[0].parent / 'vec_normalize.pkl'}" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", ["fidelity", "cooperate", "evaluate both"])
def test_one_file_of_statistics_does_not_count_for_several_zips(
    command, cheetah, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    a, b = map(str, cheetah)
    argv = ["evaluate", a, b] if command == "evaluate both" else COMMANDS[command](a, b)
    words = [
        "--env",
        "HalfCheetah-v5",
        "--vecnormalize",
        str(cheetah[0].parent / "vec_normalize.pkl"),
    ]
    assert main([*argv, *words]) == 2
    assert "belongs to one zip, but 2" in capsys.readouterr().err


def test_distill_names_its_own_flag(cheetah, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*DISTIL, str(cheetah[0])]) == 2
    assert "give --teacher-vecnormalize" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_compare_takes_no_zip(cheetah, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *map(str, cheetah)]) == 2
    assert "dpd export" in capsys.readouterr().err


def test_none_says_that_there_is_none(cheetah, capsys, tmp_path):
    argv = ["evaluate", str(cheetah[0]), "--env", "HalfCheetah-v5", "--episodes", "1", "--json"]
    returns = []
    for said in ("none", str(cheetah[0].parent / "vec_normalize.pkl")):
        assert main([*argv, "--vecnormalize", said]) == 0
        returns.append(capsys.readouterr().out)
    assert returns[0] != returns[1]
    out = tmp_path / "p.safetensors"
    words = ["--env", "HalfCheetah-v5", "--format", "dpd", "--out", str(out)]
    assert main(["export", str(cheetah[0]), *words, "--vecnormalize", "none"]) == 0
