"""The command line: precedence, and bad input in one clear line."""

import json
import subprocess
import sys

import pytest

from dpd.agents.ppo_config import PPOConfig
from dpd.agents.table import ALGORITHMS, AlgorithmSpec
from dpd.cli import main, parse_run, parse_train, saved_run
from dpd.distill.peers_config import DPDConfig
from dpd.distill.table import METHODS, MethodSpec
from dpd.errors import BadInput
from dpd.policies.config import ForeignConfig
from tests.toy.own import OwnConfig, WatchConfig


def refusal(argv, capsys):
    """Run a command that must fail; return what it said."""
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "Traceback" not in said.err
    assert said.err.startswith("dpd: ")
    return said.err


def test_a_flag_beats_the_file_which_beats_the_preset_which_beats_the_default(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"minibatch_size": 128, "epochs": 3, "distill": {"steps": 7}}))
    released = ["--preset", "released"]
    # released sets minibatch 32, steps 1, lr 5e-5; the default of epochs is 10
    assert parse_train(released).algos[0][1].minibatch_size == 32
    config = parse_train([*released, "--config", str(file), "--epochs", "4"])
    ((_, algo),) = config.algos
    assert isinstance(algo, PPOConfig)
    assert (algo.minibatch_size, algo.epochs, algo.lr) == (128, 4, 5e-5)
    assert isinstance(config.distill, DPDConfig)
    assert (config.distill.steps, config.distill.control) == (7, "reversed")


def test_the_settings_of_a_run_given_back_as_a_file_make_the_same_run(tmp_path):
    argv = ["Hopper-v5", "--hidden", "32", "16", "--no-norm-obs", "--distill.gate", "hard"]
    argv += ["--target-kl", "0.02", "--env-kwargs", '{"frame_skip": 2}', "--preset", "modern"]
    config = parse_train(argv)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.as_json()))
    assert parse_train(["--config", str(file)]) == config


def test_a_file_may_be_toml_with_names_as_flags_have_them(tmp_path, capsys):
    file = tmp_path / "settings.toml"
    file.write_text(
        'env = "Hopper-v5"\nhidden = [32, 16]\nnorm-obs = false\ndistill.gate = "hard"\n'
    )
    flags = ["Hopper-v5", "--hidden", "32", "16", "--no-norm-obs", "--distill.gate", "hard"]
    assert parse_train(["--config", str(file)]) == parse_train(flags)
    for name, text, says in (
        ("a.toml", "epochs: 3", "a.toml is not TOML: "),
        ("a.toml", "distill = 3", "must hold a TOML table of settings, with `distill` nested"),
        ("a.toml", "ephocs = 3", "unknown setting --ephocs; did you mean epochs"),
        ("a.json", "epochs = 3", "a.json is not JSON: "),
        ("a.yaml", "epochs: 3", "a.yaml must be a .json or a .toml file of settings"),
    ):
        (tmp_path / name).write_text(text)
        assert says in refusal(["train", "--config", str(tmp_path / name)], capsys)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--algo", "ppo,student", "--peers", "3"], "ppo,student names 2 students and --peers 3"),
        (["--total-steps", "100"], "less than one iteration: 1 student x"),
        (["--seeds", "1", "--workers", "2"], "learners of a seed train in one process"),
        (["--method", "bc", "--sizes", "64", "32"], "--sizes has 2 values for 1 student"),
    ],
)
def test_refusals_call_students_students(flags, says, capsys):
    said = refusal(["distill", "--teacher", "t", "--method", "kickstart", *flags], capsys)
    assert says in said and "peers " not in said.replace("--peers ", "")


def test_peers_of_ppo_share_experience_by_default():
    config = parse_train([])
    assert config == parse_train(["--preset", "modern"]) and config.preset == "modern"
    assert config.algos[0][1] == PPOConfig(share_experience=True, n_envs=8, epochs=20)
    assert isinstance(config.distill, DPDConfig) and config.distill.target_kl == 0.35
    # flags change its settings, and a preset of the learners joins it
    assert parse_train(["--epochs", "5"]).algos[0][1].n_envs == 8
    large = parse_train(["--preset", "large", "--total-steps", "9999999"])
    assert large == parse_train(["--preset", "modern,large", "--total-steps", "9999999"])


@pytest.mark.parametrize(
    "argv",
    [
        ["--preset", "paper"],
        ["--method", "none"],
        ["--algo", "td3"],
        ["--algo", "ddpg"],
        ["--algo", "sac"],
        ["--algo", "ppo,ppo"],
    ],
)
def test_whoever_was_not_in_the_study_of_the_default_has_the_settings_of_the_classes(argv):
    config = parse_train(argv)
    for name, algo in config.algos:
        assert algo == ALGORITHMS[name].settings()
    assert config.distill == METHODS[config.method].settings()
    assert config.preset == ("paper" if "paper" in argv else None)


def test_a_file_is_changed_by_no_default_preset_if_it_is_a_runs(tmp_path):
    file, none = tmp_path / "settings.json", parse_train(["--method", "none", "--peers", "2"])
    # a few settings by hand: the rest are the default's
    file.write_text(json.dumps({"lr": 1e-4, "distill": {"alpha": 2.0}}))
    config = parse_train(["--config", str(file)])
    assert config.algos[0][1] == PPOConfig(share_experience=True, n_envs=8, epochs=20, lr=1e-4)
    assert isinstance(config.distill, DPDConfig)
    assert (config.distill.dose, config.distill.alpha) == ("loss", 2.0)
    # all settings of a run before presets were recorded, and before experience was shared
    old = parse_train(["--preset", "paper"]).as_json()
    for name in ("preset", "share_experience", "share_min_ess", "share_value"):
        del old[name]
    (tmp_path / "config.json").write_text(json.dumps(old))
    for found in (parse_train(["--config", str(tmp_path / "config.json")]), saved_run(tmp_path)):
        assert found.preset is None and found.algos[0][1] == PPOConfig()
        assert found.distill == DPDConfig()
    resumed = parse_train(["--resume", str(tmp_path)])
    assert resumed.as_json() == found.as_json() and "preset" not in resumed.as_json()
    # another method for a run's settings
    file.write_text(json.dumps({k: v for k, v in none.as_json().items() if k != "distill"}))
    assert parse_train(["--config", str(file), "--method", "dpd"]).distill == DPDConfig()


def test_a_preset_of_students_is_in_their_settings_alone(tmp_path):
    # students of unlike depth are algorithms of their own in the file, for which rsl_rl is not
    argv = ["--teacher", "t", "--preset", "rsl_rl", "--student-sizes", "8,8x8", "--lr", "1e-4"]
    config = parse_run(argv, "distill")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.as_json()))
    again = parse_run(["--config", str(file)], "distill")
    assert config.preset == "rsl_rl" and again.preset is None
    assert (again.algos, again.distill) == (config.algos, config.distill)


def test_a_file_may_name_method_and_preset(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"method": "dpd", "preset": "modern", "epochs": 5}))
    config = parse_train(["--config", str(file)])
    assert config.preset == "modern"
    assert config.algos[0][1] == PPOConfig(share_experience=True, n_envs=8, epochs=5)


def test_an_environment_may_follow_settings_that_end_in_a_list(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"hidden": [8, 8]}))
    config = parse_train(["--config", str(file), "Hopper-v5"])
    assert (config.run.env, config.algos[0][1].hidden) == ("Hopper-v5", (8, 8))


def test_a_flag_may_repair_what_a_file_alone_would_get_wrong(tmp_path, capsys):
    # 100 does not divide 16 x 128 samples, but it divides 10 x 10
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"minibatch_size": 100}))
    ((_, algo),) = parse_train(["--config", str(file), "--n-envs", "10", "--n-steps", "10"]).algos
    assert algo.samples == algo.minibatch_size == 100
    assert "does not divide" in refusal(["train", "--config", str(file)], capsys)


def test_help_shows_the_defaults_of_presets_and_files(tmp_path, capsys):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"epochs": 7}))
    with pytest.raises(SystemExit):
        main(["train", "--preset", "large", "--config", str(file), "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "per learner. (default: 2048)" in shown
    assert "Passes over the samples of an iteration. (default: 7)" in shown


def test_an_algorithm_and_a_method_take_one_row_each(tmp_path, capsys, monkeypatch):
    small = {"n_envs": 2, "n_steps": 8, "minibatch_size": 8, "epochs": 1, "hidden": [4]}
    own = AlgorithmSpec(OwnConfig, "tests.toy.own:OwnLearners", {"small": small}, "ppo")
    monkeypatch.setitem(ALGORITHMS, "own", own)
    watch = MethodSpec(WatchConfig, "tests.toy.own:Watch", {"slow": {OwnConfig: {"pace": 0.5}}})
    monkeypatch.setitem(METHODS, "watch", watch)
    argv = ["train", "Swimmer-v5", "--algo", "own", "--method", "watch"]

    with pytest.raises(SystemExit):
        main([*argv, "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--algo {ppo,td3,ddpg,sac,own}" in shown
    assert "--method {dpd,none,watch}" in shown
    assert "--patience INT" in shown and "--distill.pace FLOAT" in shown
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    assert "--algo {ppo,td3,ddpg,sac,own}" in capsys.readouterr().out
    assert "did you mean own" in refusal(["train", "--algo", "owm"], capsys)
    assert "small" in refusal([*argv, "--preset", "smal"], capsys)
    assert "--algo ppo, own, not sac" in refusal(
        ["distill", "--teacher", "t", "--method", "ppd", "--algo", "sac"], capsys
    )

    out = tmp_path / "run"
    few = ["--total-steps", "32", "--evals", "1", "--eval-episodes", "1", "--final-episodes", "1"]
    argv += ["--preset", "slow,small", "--patience", "4", "--threads", "1"]
    assert main([*argv, *few, "--out", str(out)]) == 0
    config = saved_run(out)
    ((name, algo),) = config.algos
    assert (name, config.method) == ("own", "watch")
    assert isinstance(algo, OwnConfig) and (algo.patience, algo.n_steps) == (4, 8)
    assert "distill/pace,0.5" in (out / "metrics.csv").read_text()


def test_only_the_flags_of_the_chosen_method_exist():
    with pytest.raises(BadInput, match=r"distill\.gate"):
        parse_train(["--method", "none", "--distill.gate", "hard"])


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["trian"], "did you mean train"),
        (["train", "HalfCheeta-v5"], "HalfCheetah-v5"),
        (["train", "CartPole-v1"], "Discrete"),
        (["train", "--pers", "3"], "--pers"),
        (["train", "--peers", "two"], "--peers"),
        (["train", "--peers", "0"], "--peers must be at least 1"),
        (["train", "--peers", "1"], "--method none"),
        (["train", "--seeds", "-1"], "--seeds must be at least 1"),
        (["train", "--n-envs", "0"], "n_envs must be positive"),
        (["train", "--lr", "-1"], "lr must be positive"),
        (["train", "--gamma", "1.1"], "gamma must lie in"),
        (["train", "--minibatch-size", "100"], "does not divide"),
        (["train", "--total-steps", "2000"], "2 peers x 1,024 steps = 2,048"),
        (["train", "--preset", "paper", "--total-steps", "4000"], "less than one iteration"),
        (["train", "--algo", "poo"], "did you mean ppo"),
        (["train", "--algo", "td3", "--total-steps", "20000"], "lower it, or raise"),
        (["train", "--algo", "sac", "--capacity", "100"], "capacity 100 is less than"),
        (["train", "--algo", "td3", "--updates-per-step", "0"], "must be positive"),
        (["train", "--algo", "td3", "--seeds", "9999"], "lower --capacity or --seeds"),
        (["train", "--resume", "/nowhere"], "no run to resume"),
        (["train", "--peer-lr", "1e-3"], "--peer-lr has 1 values for 2 peers"),
        (["train", "--checkpoint-every", "-1"], "must not be negative"),
        (
            ["train", "--device", "tpu"],
            "--device must be cpu, cuda or for example cuda:1, not 'tpu'",
        ),
        (["train", "Pendulum-v1", "--backend", "warp"], "there is one of HalfCheetah-v5"),
        (["train", "--method", "dpp"], "did you mean dpd"),
        (["train", "--preset", "papper"], "did you mean paper"),
        (["train", "--method", "none", "--preset", "paper"], "no presets"),
        (["train", "--distill.gate", "firm"], "soft"),
        (["train", "--preset", "paper", "--distill.coef", "0.5"], "cancels"),
        (["train", "--distill.ruler", "return", "--distill.states", "own"], "own states"),
        (["train", "--distill.steps", "9"], "; --preset paper allows it (the default is modern)"),
        (
            ["train", "--preset", "large", "--total-steps", "9999999", "--distill.lr", "1e-4"],
            "; --preset paper,large allows it (the default is modern,large)",
        ),
        (["train", "--method", "none", "--preset", "paper"], "method none has no presets for ppo"),
        (["train", "--preset", "modern", "--distill.steps", "9"], "steps does nothing with dose"),
        (["train", "--distill.gate", "hard", "--distill.alpha", "3"], "--distill.gate soft"),
        (["train", "--distill.students", "2"], "peers are 0 to 1"),
        (["train", "--env-kwargs", "{"], "not JSON"),
        (["train", "--env-kwargs", '{"foo": 1}'], "takes no 'foo'; it takes xml_file"),
        (["train", "HalfCheetah-v3"], "has no time limit"),
        (["train", "--config", "/nowhere.json"], "cannot read /nowhere.json"),
        (["train", "--out", "/proc/run"], "give --out another"),
        (["evaluate", "/nowhere"], "does not exist"),
        (["evaluate", "/dev/null"], "not a regular file"),
        (["evaluate", "/dev/null", "--activation", "swish"], "--activation"),
        (["evaluate"], "PATH"),
        (["evaluate", ".", "--episodes", "0"], "--episodes"),
        (["compare", "."], "at least two PATHs"),
        (["compare", ".", "/nowhere"], "contains no policies"),
        (["compare", "/nowhere", "."], "does not exist"),
        (["compare", ".", "..", "--out", "curves.pdf"], "--out writes a .png file"),
        (["compare", ".", "..", "--out", "no/curves.png"], "no such directory"),
        (["export", "--format", "onnx"], "PATH"),
        (["export", "p.safetensors"], "--format"),
        (["export", "p.safetensors", "--format", "onxx"], "onnx"),
        (["export", "p.safetensors", "--format", "torchscript"], "no such file"),
        (["export", ".", "--format", "dpd"], "contains no policies"),
    ],
)
def test_bad_input_gets_one_line_that_says_what_is_wrong(argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refusal(argv, capsys)
    assert not list(tmp_path.iterdir())  # a refused run leaves nothing behind


def test_an_unknown_key_of_a_file_is_refused_by_name(tmp_path, capsys):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"hiden": [8]}))
    assert "--hiden" in refusal(["train", "--config", str(file)], capsys)
    file.write_text(json.dumps({"distill": {"gat": "hard"}}))
    assert "--distill.gat" in refusal(["train", "--config", str(file)], capsys)
    file.write_text(json.dumps({"peers": "two"}))
    assert '--peers must be int, not "two"' in refusal(["train", "--config", str(file)], capsys)
    file.write_text("[1]")
    assert "JSON object" in refusal(["train", "--config", str(file)], capsys)


def test_a_relative_path_in_the_environments_arguments_is_kept_as_an_absolute_one(
    tmp_path, monkeypatch
):
    (tmp_path / "robots").mkdir()
    for name in ("robots/one.xml", "two.xml"):
        (tmp_path / name).write_text("<mujoco/>")
    monkeypatch.chdir(tmp_path)
    given = {
        "xml_file": "./two.xml",
        "others": ["robots/one.xml", {"deep": "../" + tmp_path.name + "/two.xml"}],
        "bare": "two.xml",  # Gymnasium looks it up in its own assets
        "missing": "./three.xml",
        "absolute": str(tmp_path / "two.xml"),
        "number": 2,
    }
    one, two = str(tmp_path / "robots" / "one.xml"), str(tmp_path / "two.xml")
    kept = given | {"xml_file": two, "others": [one, {"deep": two}]}
    config = parse_train(["Ant-v5", "--env-kwargs", json.dumps(given)])
    assert config.run.parsed_env_kwargs() == kept
    assert ForeignConfig(env_kwargs=json.dumps(given)).parsed_env_kwargs() == kept
    settings = tmp_path / "config.json"  # as a run keeps them, for workers and for a resume
    settings.write_text(json.dumps(config.as_json()))
    monkeypatch.chdir("/")
    assert parse_train(["--config", str(settings)]) == config


MODULE = """
import gymnasium
gymnasium.register(
    "Mine-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=500
)
"""


@pytest.mark.parametrize("start", ["command", "-m", "safe"])
def test_a_module_of_the_current_directory_is_found_however_dpd_is_started(tmp_path, start):
    (tmp_path / "my_env.py").write_text(MODULE)
    script = tmp_path / "bin" / "dpd"  # as pip writes it: its own folder comes first in sys.path
    script.parent.mkdir()
    script.write_text("import sys\nfrom dpd.__main__ import main\nsys.exit(main())\n")
    python = [sys.executable, *(["-P"] if start == "safe" else [])]
    how = ["-m", "dpd"] if start == "-m" else [str(script)]
    argv = [*python, *how, "train", "my_env:Mine-v0"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    # refused for its actions, so it was found; -P tells Python not to look there
    expected = "No module named 'my_env'" if start == "safe" else "takes Discrete actions"
    assert expected in done.stderr


def test_help_and_version_leave_with_zero(capsys):
    assert main(["--help"]) == 0 and "dpd train" in capsys.readouterr().out
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("dpd ")
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--n-envs" in shown and "--distill.alpha" in shown
