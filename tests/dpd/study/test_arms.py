"""Controls change the subject's flags: in what they are for, and in nothing else."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from dpd.cli import main, parse_train
from dpd.config import TrainConfig
from dpd.study.arms import ARMS, Arm, name_of, own_arms, split_flags, values_of
from dpd.study.config import StudyConfig

LOSS = "--preset paper --distill.dose loss --distill.divergence kl_forward --distill.target-kl 0.35"
PAIR = f"{LOSS} --share-experience"
CONTROLS = ("independent", "one", "uniform", "shuffled", "reversed")
EXTRA = ("shared", "unshared", "one-epochs", "one-reuse")

NONE, SHARING = {"method", "distill"}, {"share_experience"}
LEFT_OUT = {
    "independent": NONE | SHARING,
    "one": NONE | SHARING | {"peers", "n_envs"},
    "shared": NONE,
    "unshared": SHARING,
    "one-epochs": NONE | SHARING | {"peers", "epochs", "n_envs"},
    "one-reuse": NONE | SHARING | {"peers", "reuse_iterations"},
}
"""Settings in which a control differs from a subject that shares experience."""


def made(arms: tuple[str, ...], common: str = "", **settings: Any) -> StudyConfig:
    """Make the settings of a study; `common` are the flags after the --."""
    flags = tuple(shlex.split(common))
    return StudyConfig(envs=("Hopper-v5",), arms=arms, flags=flags, **settings)


def flags_of(config: StudyConfig, arm: str) -> str:
    """Return an arm's flags, without the environment, the budget and the directory."""
    words = config.words("Hopper-v5", arm)
    start = words.index("--total-steps") + 2
    return shlex.join(words[start : words.index("--out")])


def plans(config: StudyConfig) -> dict[str, TrainConfig]:
    """Return the settings of all arms."""
    return {arm: parse_train(config.words("Hopper-v5", arm)) for arm in config.chosen}


def changes(plan: TrainConfig, subject: TrainConfig) -> set[str]:
    """Return the names of settings in which a run differs from the subject's."""
    theirs = subject.as_json()
    return {name for name, value in plan.as_json().items() if value != theirs[name]}


def test_controls_of_an_own_subject_are_made_from_its_flags() -> None:
    config = made((*CONTROLS, *EXTRA), subject="pair", own=(f"pair={PAIR}",))
    assert {arm: flags_of(config, arm) for arm in config.chosen} == {
        "pair": PAIR,
        "independent": "--method none",
        "one": "--method none --peers 1 --n-envs 32",  # a peer's joint batch is of 2 * 16
        "uniform": f"{PAIR} --distill.gate uniform",
        "shuffled": f"{PAIR} --distill.control shuffled",
        "reversed": f"{PAIR} --distill.control reversed",
        "shared": "--method none --share-experience",
        "unshared": f"{LOSS} --no-share-experience",
        "one-epochs": "--method none --peers 1 --epochs 20 --n-envs 32",  # twice PPO's 10
        "one-reuse": "--method none --peers 1 --reuse-iterations 2",  # its own 16 twice
    }
    found = plans(config)
    wanted = {"pair": set(), **LEFT_OUT}
    for arm, plan in found.items():
        assert changes(plan, found["pair"]) == wanted.get(arm, {"distill"}), arm
    # a pair's joint batch has 2 x 2,048 samples
    assert found["one"].algos[0][1].samples == 2 * found["pair"].algos[0][1].samples == 4096


def test_controls_of_the_default_are_those_of_its_preset() -> None:
    config = made((*CONTROLS, *EXTRA, "paper"))
    # modern: n_envs 8 and epochs 20 of the learners, share_experience, and the distillation
    assert {arm: flags_of(config, arm) for arm in config.chosen} == {
        "dpd": "",
        "independent": "--n-envs 8 --epochs 20 --method none",
        "one": "--epochs 20 --method none --peers 1 --n-envs 16",  # a pair's joint batch: 2 * 8
        "uniform": "--preset modern --distill.gate uniform",
        "shuffled": "--preset modern --distill.control shuffled",
        "reversed": "--preset modern --distill.control reversed",
        "shared": "--n-envs 8 --epochs 20 --method none --share-experience",
        "unshared": "--preset modern --no-share-experience",
        "one-epochs": "--method none --peers 1 --epochs 40 --n-envs 16",
        "one-reuse": "--n-envs 8 --epochs 20 --method none --peers 1 --reuse-iterations 2",
        "paper": "--preset paper",
    }
    found = plans(config)
    wanted = {
        "dpd": set(),
        **LEFT_OUT,
        "paper": {"preset", "distill", "share_experience", "n_envs", "epochs"},
    }
    for arm, plan in found.items():
        assert changes(plan, found["dpd"]) == wanted.get(arm, {"distill"}), arm


def test_the_default_preset_joins_one_of_the_learners_and_yields_to_flags() -> None:
    config = made(
        ("uniform", "independent"), "--epochs 7", subject="big", own=("big=--preset large",)
    )
    assert flags_of(config, "uniform") == "--preset modern,large --epochs 7 --distill.gate uniform"
    found = plans(config)
    for arm, plan in found.items():
        ((_, algo),) = plan.algos
        assert (algo.n_envs, getattr(algo, "epochs", 0)) == (2048, 7), arm
        assert getattr(algo, "share_experience", None) == (arm != "independent")
    assert flags_of(config, "independent").count("--epochs") == 1


def test_without_a_default_preset_controls_name_none() -> None:
    # no study has had TD3, DDPG and SAC yet, and no method no preset
    config = made(("uniform", "independent"), algo="sac")
    assert flags_of(config, "uniform") == "--distill.gate uniform"
    config = made(("one",), subject="alone", own=("alone=--method none --epochs 3",))
    assert flags_of(config, "one") == "--epochs 3 --method none --peers 1"


def test_flags_of_every_run_go_only_where_they_apply() -> None:
    common = "--share-experience --share_min_ess 0.3 --distill.alpha=2 --epochs 20 --n-envs 8"
    arms = ("independent", "one-epochs", "one-batch", "shared", "uniform")
    config = made(arms, common, own=("dpd=--preset paper",))
    assert {arm: flags_of(config, arm) for arm in config.chosen} == {
        "dpd": f"{common} --preset paper",
        "independent": "--epochs 20 --n-envs 8 --method none",
        "one-epochs": "--method none --peers 1 --epochs 40 --n-envs 16",
        "one-batch": "--epochs 20 --method none --peers 1 --n-envs 16",
        "shared": "--share_min_ess 0.3 --epochs 20 --n-envs 8 --method none --share-experience",
        "uniform": f"{common} --preset paper --distill.gate uniform",
    }
    # a flag of a control replaces the same flag of the subject
    hard = made(("uniform",), "--distill.gate hard", algo="sac")
    assert flags_of(hard, "uniform") == "--distill.gate uniform"


def test_computation_is_multiplied_by_the_number_of_peers() -> None:
    four = "four=--peers 4 --peer-lr 1e-3 1e-3 1e-4 1e-4 --preset modern,large --share-experience"
    config = made(("one", "one-epochs"), subject="four", own=(four,))
    found = plans(config)
    # the preset large has 5 epochs and 2,048 environments
    assert getattr(found["one-epochs"].algos[0][1], "epochs", 0) == 20
    assert found["one"].algos[0][1].n_envs == 8192
    for arm, its in {"one": set(), "one-epochs": {"epochs"}}.items():
        off = {"method", "distill", "share_experience", "peers", "peer_lr", "n_envs"}
        assert changes(found[arm], found["four"]) == off | its, arm
    config = made(("one-updates", "one-critics"), "--updates-per-step 0.5", algo="sac")
    # twice half an update per step, and twice SAC's two critics
    assert flags_of(config, "one-updates") == "--method none --peers 1 --updates-per-step 1.0"
    assert flags_of(config, "one-critics").endswith("--n-critics 4 --updates-per-step 1.0")
    assert all(plan.run.total_steps == 1_000_000 for plan in plans(config).values())


def test_learners_keep_the_settings_of_a_preset_that_a_control_leaves_out() -> None:
    found = plans(made(("independent", "one"), subject="released"))
    assert changes(found["independent"], found["released"]) == {"method", "distill"}
    assert changes(found["one"], found["released"]) == {"method", "distill", "peers"}
    assert found["one"].algos[0][1].lr == 5e-5


def test_methods_take_nothing_from_the_subject() -> None:
    own = (f"pair={PAIR}", "sharp=--distill.alpha 3")
    config = made(("dpd", "released", "one"), "--epochs 5", subject="pair", own=own)
    assert flags_of(config, "dpd") == "--epochs 5"
    assert flags_of(config, "released") == "--epochs 5 --preset released"
    assert flags_of(config, "sharp") == "--epochs 5 --distill.alpha 3"


def test_words_are_split_into_flags_with_their_values() -> None:
    groups = split_flags(["--a", "1", "-2", "--b_c=3", "--no-d"])
    assert groups == [("--a", "1", "-2"), ("--b_c=3",), ("--no-d",)]
    assert [name_of(group) for group in groups] == ["a", "b-c", "d"]
    assert [values_of(group) for group in groups] == [["1", "-2"], ["3"], []]


def test_an_arm_is_one_row_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Arm(flags="--method none --peers 1 --clip 0.1", asks="why?", without=ARMS["one"].without)
    monkeypatch.setitem(ARMS, "one-clip", row)
    config = made(("one-clip",), "--share-experience")
    assert flags_of(config, "one-clip") == (
        "--n-envs 8 --epochs 20 --method none --peers 1 --clip 0.1"
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--arms", "one-critics"], "arm one-critics needs --n-critics, which ppo lacks"),
        (["--arms", "one-epochs", "--algo", "sac"], "one-epochs needs --epochs, which sac lacks"),
        (["--arms", "modern"], "arms dpd and modern have the same settings"),
        (["--arms", "unshared", "--algo", "sac"], "arms dpd and unshared have the same settings"),
        (["--own", "few=--seeds 3"], "--own few sets --seeds, which all arms share"),
        (["--own", "far=--total_steps=3"], "--own far sets --total-steps, which all arms share"),
        (
            ["--subject", "x", "--own", "x=--config f.json"],
            "the subject x cannot take --config in --own",
        ),
        (["--arms", "one-epochs", "--", "--epochs", "x"], "arm dpd: "),
        (
            ["--subject", "one-epochs", "--", "--epochs", "x"],
            "arm one-epochs: --epochs must be a number, not 'x'",
        ),
        (["--jobs", "0"], "--jobs must be at least 1"),
    ],
)
def test_arms_that_make_no_sense_are_refused_in_one_line(
    given: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "--out", str(tmp_path / "out"), "Hopper-v5", *given]) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
    assert not (tmp_path / "out").exists()


def test_an_own_arm_takes_the_place_of_a_control_and_keeps_its_question() -> None:
    arms = own_arms(["one=--method none --peers 1", "wide=--hidden 256 256"])
    assert arms["one"].asks == ARMS["one"].asks and arms["one"].is_method
    assert arms["wide"].asks == "is it better than --hidden 256 256?"
