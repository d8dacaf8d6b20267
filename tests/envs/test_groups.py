"""Groups of observations: those of Gymnasium's own tasks, and the words that choose columns."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from dpd.envs.arguments import make_task
from dpd.envs.groups import Groups, UnknownColumns, columns_of, consecutive, is_choosable
from dpd.envs.make import check
from dpd.envs.native import Simulation
from dpd.envs.tasks import TASKS

# qpos 0 to 2, qvel 3 to 4, and two keys of a nested Dict
GROUPS = consecutive({"qpos": 3, "qvel": 2, "legs.left": 1, "legs.right": 4})
UNNAMED = {"Reacher-v5", "Pusher-v5", "InvertedDoublePendulum-v5"}  # in Gymnasium
UNNAMED |= {env_id for env_id in TASKS if "v4" in env_id}
LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    *((env_id, {}) for env_id in TASKS if env_id not in UNNAMED),
    ("Hopper-v5", {"exclude_current_positions_from_observation": False}),
    ("Ant-v5", {"include_cfrc_ext_in_observation": False}),
    ("Humanoid-v5", {"include_cvel_in_observation": False, "include_cinert_in_observation": False}),
    ("HumanoidStandup-v5", {"exclude_current_positions_from_observation": False}),
]


def gymnasium_groups(env: gymnasium.Env) -> Groups:
    """Return the groups as Gymnasium's own `observation_structure` has them."""
    sizes = dict(env.unwrapped.observation_structure)  # type: ignore[attr-defined]
    sizes.pop("skipped_qpos", None)
    return consecutive(sizes)


@pytest.mark.parametrize(("env_id", "kwargs"), LAYOUTS)
def test_groups_are_those_of_gymnasium(env_id: str, kwargs: dict[str, Any]) -> None:
    env = gymnasium.make(env_id, **kwargs)
    truth = gymnasium_groups(env)
    env.close()
    assert check(env_id, "gymnasium", kwargs).groups == truth
    sim = Simulation(make_task(env_id, None, kwargs), 1, [0])
    assert list(sim.groups.items()) == list(truth.items())
    assert sum(map(len, sim.groups.values())) == sim.obs_dim
    sim.close()


@pytest.mark.parametrize("env_id", ["Walker2d-v5", "Humanoid-v5"])
def test_the_columns_of_a_group_hold_its_mujoco_field(env_id: str) -> None:
    env = gymnasium.make(env_id)
    env.reset(seed=0)
    for _ in range(20):
        obs = env.step(env.action_space.sample())[0]
    groups, data = check(env_id, "native").groups, env.unwrapped.data  # type: ignore[attr-defined]
    leading = len(data.qpos) - len(groups["qpos"])
    np.testing.assert_array_equal(obs[groups["qpos"]], data.qpos[leading:])
    fields = {name: getattr(data, name).reshape(-1) for name in groups if name != "qpos"}
    for name, field in fields.items():
        seen = obs[groups[name]]
        # rows of the world body come first, and are left out
        field = field.clip(-10, 10) if env_id == "Walker2d-v5" else field
        np.testing.assert_array_equal(seen, field[len(field) - len(seen) :])
    env.close()


@pytest.mark.parametrize(
    ("env_id", "groups"),
    [
        # two angles as cosines and sines, the target's place, two speeds, the way to the target
        ("Reacher-v5", {"cos": 2, "sin": 2, "target": 2, "qvel": 2, "to_target": 2}),
        ("Pusher-v5", {"qpos": 7, "qvel": 7, "tips_arm": 3, "object": 3, "goal": 3}),
        (
            "InvertedDoublePendulum-v5",
            {"qpos": 1, "sin": 2, "cos": 2, "qvel": 3, "qfrc_constraint": 1},
        ),
    ],
)
def test_a_task_that_gymnasium_gives_no_structure_has_names_of_its_own(
    env_id: str, groups: dict[str, int]
) -> None:
    env = gymnasium.make(env_id)
    obs, _ = env.reset(seed=0)
    data = env.unwrapped.data  # type: ignore[attr-defined]
    columns = check(env_id).groups
    assert {name: len(part) for name, part in columns.items()} == groups
    truth = {
        "cos": np.cos(data.qpos[:2] if "Reacher" in env_id else data.qpos[1:]),
        "sin": np.sin(data.qpos[:2] if "Reacher" in env_id else data.qpos[1:]),
        "target": data.qpos[2:],
        "qpos": data.qpos[: groups.get("qpos", 0)],
        "qvel": data.qvel[: groups["qvel"]],
        "qfrc_constraint": data.qfrc_constraint[:1],
    }
    for name in ("fingertip", "tips_arm", "object", "goal"):
        truth[name] = data.body(name).xpos if name in groups else np.zeros(3)
    if "Reacher" in env_id:
        truth["to_target"] = (data.body("fingertip").xpos - data.body("target").xpos)[:2]
    for name in groups:
        np.testing.assert_array_equal(obs[columns[name]], truth[name])
    assert check(env_id, "gymnasium").groups == columns
    env.close()


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("qpos", [0, 1, 2]),
        ("qvel, qpos", [0, 1, 2, 3, 4]),  # always ascending
        ("all", list(range(10))),
        ("7,3,5", [3, 5, 7]),
        ("0:3", [0, 1, 2]),
        (":2,8:", [0, 1, 8, 9]),
        ("legs", [5, 6, 7, 8, 9]),
        ("legs.left,qvel", [3, 4, 5]),
    ],
)
def test_words_choose_columns(text: str, columns: list[int]) -> None:
    assert columns_of(text, GROUPS, 10) == columns


KNOWN = (
    "groups are qpos (0:3), qvel (3:5), legs.left (5), legs.right (6:10); "
    "columns are 0 to 9, for example 0:10"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"no columns are chosen; {KNOWN}"),
        (" , ", f"no columns are chosen; {KNOWN}"),
        ("qvek", f"no group is called 'qvek', did you mean qvel?; {KNOWN}"),
        ("leg", f"no group is called 'leg'; {KNOWN}"),
        ("10", f"'10' is not within the 10 columns; {KNOWN}"),
        ("5:11", f"'5:11' is not within the 10 columns; {KNOWN}"),
        ("4:4", f"'4:4' is not within the 10 columns; {KNOWN}"),
        ("-1", f"no group is called '-1'; {KNOWN}"),
        ("qpos,2:4", "'qpos' and '2:4' both choose column 2"),
        ("qpos,qpos", "'qpos' and 'qpos' both choose column 0"),
    ],
)
def test_words_that_choose_nothing_are_refused_with_what_there_is(text: str, message: str) -> None:
    with pytest.raises(UnknownColumns) as error:
        columns_of(text, GROUPS, 10)
    assert str(error.value) == message


def test_an_observation_without_names_is_chosen_by_columns() -> None:
    with pytest.raises(UnknownColumns, match="no group has a name; columns are 0 to 3, for exampl"):
        columns_of("qpos", {}, 4)
    assert columns_of("1:3", {}, 4) == [1, 2]


def test_names_that_mean_something_else_cannot_be_chosen() -> None:
    names = ("a.b", "all", "3", "0:8", ":", "a,b", "", " a")
    assert [name for name in names if is_choosable(name)] == ["a.b"]
