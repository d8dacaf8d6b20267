"""`dpd groups`: the names and columns that a user can choose from."""

import json
from typing import Any

import pytest

from dpd.cli import main
from tests.toy.dict_env import CART


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["groups", *argv, "--json"]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


def test_a_randomized_native_task_has_its_fields_and_its_factors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = printed(capsys, "Ant-v5", "--randomize", "mass=0.8:1.2,gear=3")
    assert data["env_kwargs"] == {"randomize": "mass=0.8:1.2,gear=3.0:3.0"}
    # 13 + 14 + 13 bodies x 6 forces, and two factors
    columns = {name: (row["columns"], row["size"]) for name, row in data["groups"].items()}
    assert columns == {
        "qpos": ("0:13", 13),
        "qvel": ("13:27", 14),
        "cfrc_ext": ("27:105", 78),
        "params": ("105:107", 2),
    }
    params = data["groups"]["params"]
    assert 0.8 <= params["low"] <= 1.2 and params["high"] == 3
    assert data["groups"]["cfrc_ext"]["low"] == -1  # clipped there
    assert (data["all"]["columns"], data["obs_dim"]) == ("0:107", 107)


def test_the_arguments_of_an_environment_change_its_groups(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kwargs = {"exclude_current_positions_from_observation": False}
    data = printed(capsys, "Hopper-v5", "--env-kwargs", json.dumps(kwargs))
    assert data["groups"]["qpos"]["columns"] == "0:6"  # 0:5 without the place
    assert data["env_kwargs"] == kwargs


def test_the_table_has_a_row_for_each_key_of_a_dict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["groups", CART]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["alpha", "0:2", "2", "0.5", "0.5"] in rows
    assert ["cart.grid", "2:8", "6", "0", "5"] in rows
    assert [row[:3] for row in rows if row and row[0] == "all"] == [["all", "0:10", "10"]]


def test_an_observation_without_names_says_how_to_choose(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["groups", "Pendulum-v1"]) == 0
    assert "no group has a name: choose columns, for example 0:3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "ENV"),
        (["Hoper-v5"], "did you mean Hopper-v5"),
        (["Hopper-v5", "--env-kwargs", "[]"], "--env-kwargs must be a JSON object"),
        (["Pendulum-v1", "--randomize", "mass=2"], "--randomize changes the model of HalfCheetah"),
        (["Swimmer-v5", "--randomize", "damping=2"], "a factor of damping would change nothing"),
    ],
)
def test_bad_input_gets_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["groups", *argv]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said
