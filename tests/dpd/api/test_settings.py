"""Keyword arguments make the settings that flags make, and are refused as flags are."""

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpd import cli
from dpd.api.settings import command_settings, cooperation_settings, json_value, run_settings
from dpd.errors import BadInput

ROOT = Path(__file__).parents[3]
BOTH: list[tuple[str, list[str], dict[str, Any]]] = [
    ("train", [], {}),
    (
        "train",
        ["Hopper-v5", "--hidden", "32", "16", "--no-norm-obs", "--distill.gate", "hard"],
        {"env": "Hopper-v5", "hidden": (32, 16), "norm_obs": False, "distill": {"gate": "hard"}},
    ),
    (
        "train",
        [
            "--preset",
            "paper,large",
            "--env-kwargs",
            '{"x": 2}',
            "--total-steps",
            "9000000",
        ],
        {
            "preset": ["paper", "large"],
            "env_kwargs": {"x": 2},
            "total_steps": np.int64(9_000_000),
        },
    ),
    (
        "train",
        ["--algo", "ppo,sac", "--peer0.lr", "1e-3", "--peer1.hidden", "8", "--method", "none"],
        {
            "algo": ["ppo", "sac"],
            "peer0": {"lr": np.float64(1e-3)},
            "peer1": {"hidden": 8},
            "method": "none",
        },
    ),
    (
        "distill",
        [
            "--teacher",
            "a",
            "--student-sizes",
            "16,64x64",
            "--method",
            "bc",
            "--distill.steps",
            "9",
        ],
        {
            "teacher": Path("a"),
            "student_sizes": [16, [64, 64]],
            "method": "bc",
            "distill": {"steps": 9},
        },
    ),
    (
        "distill",
        ["--teacher", "a", "b", "--history", "1,2"],
        {"teacher": ["a", "b"], "history": [1, 2]},
    ),
    ("distill", ["--teacher", "a", "--history", "4"], {"teacher": "a", "history": 4}),
]


@pytest.mark.parametrize(("command", "argv", "keywords"), BOTH)
def test_keywords_make_the_settings_of_the_same_flags(
    command: str, argv: list[str], keywords: dict[str, Any]
) -> None:
    assert run_settings(command, keywords) == cli.parse_run(argv, command)


OTHERS: list[tuple[str, list[str], dict[str, Any]]] = [
    ("evaluate", ["a", "b", "--episodes", "3"], {"paths": ("a", "b"), "episodes": 3}),
    (
        "evaluate",
        ["a.zip", "--env", "Hopper-v5", "--env-kwargs", '{"x": 1}', "--vecnormalize", "none"],
        {"paths": "a.zip", "env": "Hopper-v5", "env_kwargs": {"x": 1}, "vecnormalize": "none"},
    ),
    ("compare", ["a", "b", "--out", "c.png"], {"paths": ["a", "b"], "out": Path("c.png")}),
    ("fidelity", ["t", "s", "--states", "9"], {"teacher": "t", "students": ["s"], "states": 9}),
    ("sweep", ["t", "--sizes", "20", "30"], {"teacher": "t", "sizes": [20, 30]}),
    ("export", ["p", "--format", "onnx"], {"path": "p", "format": "onnx"}),
    ("groups", ["Hopper-v5"], {"env": "Hopper-v5"}),
    ("report", ["run", "--videos", "0"], {"path": "run", "videos": 0}),
    ("push", ["run", "me/it", "--private"], {"path": "run", "repo": "me/it", "private": True}),
    ("pull", ["me/it", "--out", "d"], {"repo": "me/it", "out": Path("d")}),
    ("watch", ["a", "b", "--once"], {"paths": ["a", "b"], "once": True}),
    (
        "tune",
        ["--space", "s.toml", "--study-seeds", "0", "10", "--engine", "ray", "--task-gpus", "1"],
        {"space": "s.toml", "study_seeds": (0, 10), "engine": "ray", "task_gpus": 1},
    ),
    (
        "study",
        ["Hopper-v5", "--engine", "ray", "--address", "auto", "--retries", "0"],
        {"envs": "Hopper-v5", "engine": "ray", "address": "auto", "retries": 0},
    ),
]


@pytest.mark.parametrize(("command", "argv", "keywords"), OTHERS)
def test_keywords_of_other_commands_make_the_settings_of_the_same_flags(
    command: str, argv: list[str], keywords: dict[str, Any]
) -> None:
    kind = cli.PLAIN_COMMANDS[command][0]
    assert command_settings(kind, keywords) == cli.parse(kind, argv, f"dpd {command}")


def test_flags_for_every_run_of_a_study_are_those_behind_the_dashes() -> None:
    keywords = {"envs": ["Hopper-v5"], "arms": "one", "flags": ["--epochs", "3"]}
    config = command_settings(cli.StudyConfig, keywords)
    assert config == cli.parse_passing(
        ["Hopper-v5", "--arms", "one", "--", "--epochs", "3"], "study"
    )


REFUSED: list[tuple[str, list[str], dict[str, Any]]] = [
    ("train", ["--peers", "0"], {"peers": 0}),
    ("train", ["--minibatch-size", "100"], {"minibatch_size": 100}),
    ("train", ["--algo", "poo"], {"algo": "poo"}),
    ("train", ["--method", "dpp"], {"method": "dpp"}),
    ("train", ["--distill.steps", "5"], {"distill": {"steps": 5}}),
    ("train", ["--resume", "/nowhere"], {"resume": "/nowhere"}),
    ("train", ["--algo", "ppo,sac", "--peer0.lr", "-1"], {"algo": "ppo,sac", "peer0": {"lr": -1}}),
    ("train", ["--algo", "td3", "--init-std", "0.2"], {"algo": "td3", "init_std": 0.2}),
    ("distill", [], {}),
    ("distill", ["--teacher", "t", "--method", "dpd"], {"teacher": "t", "method": "dpd"}),
]


@pytest.mark.parametrize(("command", "argv", "keywords"), REFUSED)
def test_what_a_flag_may_not_be_a_keyword_may_not_be_and_the_message_is_the_same(
    command: str, argv: list[str], keywords: dict[str, Any]
) -> None:
    with pytest.raises(BadInput) as by_flag:
        cli.parse_run(argv, command)
    with pytest.raises(BadInput) as by_keyword:
        run_settings(command, keywords)
    assert str(by_keyword.value) == str(by_flag.value)


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"totl_steps": 1}, "unknown setting --totl-steps; did you mean total_steps"),
        ({"distill": {"gat": "hard"}}, "unknown setting --distill.gat; did you mean gate"),
        ({"method": "none", "distill": {"gate": "hard"}}, "unknown setting --distill.gate"),
        ({"peers": "two"}, '--peers must be int, not "two"'),
        ({"peers": 2.5}, "--peers must be int, not 2.5"),
        ({"lr": object}, "--lr must be float, not "),
        ({"distill": 3}, "unknown setting --distill"),
    ],
)
def test_unknown_keywords_and_wrong_types_are_refused(keywords: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says.replace("(", r"\(")):
        run_settings("train", keywords)


def test_other_commands_refuse_unknown_keywords_too() -> None:
    with pytest.raises(BadInput, match="--episods; did you mean episodes"):
        command_settings(cli.EvaluateConfig, {"paths": "a", "episods": 3})
    with pytest.raises(BadInput, match="unknown setting --json"):  # a function returns its results
        command_settings(cli.EvaluateConfig, {"paths": "a", "json": True})
    with pytest.raises(BadInput, match="unknown setting --where"):  # its flags have no prefix
        command_settings(cli.StudyConfig, {"where": {"engine": "ray"}})
    with pytest.raises(ValueError, match="--episodes must be at least 1"):
        command_settings(cli.EvaluateConfig, {"paths": "a", "episodes": 0})
    with pytest.raises(BadInput, match="needs a PATH"):
        command_settings(cli.EvaluateConfig, {"paths": ()})
    with pytest.raises(BadInput, match="no run of dpd cooperate"):
        cooperation_settings({"resume": "/nowhere"})


def test_the_settings_of_a_run_make_the_same_run_and_keywords_beat_a_file(tmp_path: Path) -> None:
    argv = ["Hopper-v5", "--hidden", "32", "16", "--preset", "modern", "--distill.target-kl", "0.8"]
    config = cli.parse_train(argv)
    assert run_settings("train", config.as_json()) == config
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"epochs": 3, "n_envs": 8}))
    ((_, algo),) = run_settings("train", {"config": file, "epochs": 4}).algos
    assert (getattr(algo, "epochs", None), algo.n_envs) == (4, 8)


def test_values_become_those_of_json() -> None:
    given = {"a": (np.float32(0.5), Path("x")), "b": {"c": np.int8(3)}, "d": True, "e": None}
    assert json_value(given) == {"a": [0.5, "x"], "b": {"c": 3}, "d": True, "e": None}
    assert type(json_value(np.int8(3))) is int and json_value(True) is True


def test_the_types_of_keywords_are_those_of_the_settings() -> None:
    spec = importlib.util.spec_from_file_location("keywords", ROOT / "docs" / "keywords.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    stored = ast.dump(ast.parse(script.TARGET.read_text()))
    assert stored == ast.dump(ast.parse(script.written())), "run make format"
