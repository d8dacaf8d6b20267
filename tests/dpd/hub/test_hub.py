"""`dpd push`, `dpd pull` and `dpd.pull` against a stand-in of the hub, without network."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants

import dpd
from dpd.agents.config import View
from dpd.cli import main, parse_run, parse_train, saved_run
from dpd.errors import BadInput
from dpd.hub.card import Publication, card_text
from dpd.hub.command import published, training_command
from dpd.policies.policyfile import Policy
from dpd.run.episodes import EvalResult
from tests.toy.hub import READ_ONLY, TOKEN, Hub, serving
from tests.toy.policies import saved
from tests.toy.runs import unreported

REPO = "me/swimmer"
RUN = ["train", "Swimmer-v5", "--n-envs", "2", "--n-steps", "32", "--minibatch-size", "32"]
RUN += ["--hidden", "4", "--total-steps", "256", "--kernels", "torch", "--threads", "1"]
RUN += ["--evals", "1", "--eval-episodes", "1", "--wandb", "--wandb-mode", "offline"]
STUDENT = {"name": "4", "parameters": 58, "return": 20.0, "retained": 0.5, "agree": 0.75}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "swimmer"
    with unreported():
        assert main([*RUN, "--out", str(out)]) == 0
    (out / "fidelity.json").write_text(json.dumps({"sizes": [STUDENT]}))
    return out


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # the client reads its environment when it is imported
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        yield hub


def test_a_pushed_run_has_a_card_with_its_returns_and_can_be_played_from_it(
    hub: Hub, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run_dir), REPO, "--episodes", "3", "--seed", "7", "--private"]) == 0
    assert f"published  {hub.url}/{REPO}" in capsys.readouterr().out
    files = hub.repos[REPO]
    learners = [f"policies/seed0-peer{peer}{best}" for peer in (0, 1) for best in ("", "-best")]
    policies = {f"{name}.safetensors" for name in learners} | {"policy.safetensors"}
    pictures = {"curves.png", "README.md", "config.json", "fidelity.json"}
    assert files.keys() == policies | pictures and hub.private == {REPO}
    text = files["README.md"].decode()
    assert str(tmp_path.parent) not in text + files["config.json"].decode()
    assert "wandb" not in json.loads(files["config.json"])

    # The same numbers as those of dpd evaluate.
    assert main(["evaluate", str(run_dir), "--episodes", "3", "--seed", "7", "--json"]) == 0
    rows = {Path(row["policy"]).stem: row for row in json.loads(capsys.readouterr().out)}
    data: Any = ModelCard(text).data
    assert "Swimmer-v5" in data.tags
    (result,) = data.eval_results
    best = rows[data.model_name]
    assert (result.task_type, result.metric_type) == ("reinforcement-learning", "mean_reward")
    assert result.metric_value == f"{best['mean']:.2f} +/- {best['std']:.2f}"
    for name, row in rows.items():
        table = [line for line in text.splitlines() if line.startswith("|")]
        line = next(line for line in table if name in line.replace("*", "").split())
        assert line.split("|")[2].strip() == f"{row['mean']:,.0f}"
    assert "![curves](curves.png)" in text and files["curves.png"].startswith(b"\x89PNG")
    assert "| 4 | 58 | 20 | 0.5 | 0.75 |" in text
    command = next(line for line in text.splitlines() if line.startswith("dpd train"))
    config = parse_train(command.split()[2:])
    assert config.as_json() == published(saved_run(run_dir)).as_json()

    (block,) = [part for part in text.split("```") if part.startswith("python\n")]
    assert len([line for line in block.splitlines() if line][2:]) == 3
    exec(block.removeprefix("python\n"), {})
    assert np.isfinite(float(capsys.readouterr().out))
    policy, saved = dpd.pull(REPO), dpd.load(run_dir / f"policies/{data.model_name}.safetensors")
    assert policy.acts_as(saved)


def test_what_was_pushed_is_pulled_and_played(
    hub: Hub, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["push", str(run_dir), REPO, "--episodes", "1"]
    assert main([*argv, "--preview", "preview"]) == 0 and not hub.repos and not hub.asked
    assert main(argv) == 0
    assert main(["pull", REPO]) == 0
    found = {file.relative_to("swimmer").as_posix() for file in Path("swimmer").rglob("*.*")}
    assert found == hub.repos[REPO].keys()
    for name, content in hub.repos[REPO].items():
        assert Path("swimmer", name).read_bytes() == Path("preview", name).read_bytes() == content
    assert main(["evaluate", "swimmer", "--episodes", "1"]) == 0
    assert main(argv) == 0  # again: the repository exists
    pushed, pulled = dpd.push(run_dir, REPO, episodes=1), dpd.pull(REPO, out="again")
    assert pushed.url == f"{hub.url}/{REPO}" and pulled.path == Path("again")
    assert set(pushed.files) == set(pulled.files) == found
    with pytest.raises(BadInput, match="file names one policy, and out takes all"):
        dpd.pull(REPO, "policy.safetensors", out="third")  # type: ignore[call-overload]


def test_nothing_but_policies_and_their_descriptions_is_downloaded(
    hub: Hub, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (run_dir / "policies" / "seed0-peer0.safetensors").read_bytes()
    hub.repos[REPO] = {
        "good.safetensors": good,
        "broken.safetensors": good[:-8],
        "../escaped.safetensors": good,
        "model.pkl": b"\x80\x04evil",
        "policy.pth": b"\x80\x04evil",
        "replay.mp4": b"film",
        "ppo.zip": b"PK\x03\x04",
        "vec_normalize.pkl": b"\x80\x04data",
        "README.md": b"# x",
    }
    out = tmp_path / "new" / "policies"
    out.parent.mkdir()
    assert main(["pull", REPO, "--out", str(out)]) == 0
    kept = {file.name for file in out.iterdir()}
    assert kept == {"good.safetensors", "ppo.zip", "vec_normalize.pkl", "README.md"}
    assert [file.name for file in out.parent.iterdir()] == ["policies"]
    said = capsys.readouterr().out
    assert "note: left out broken.safetensors" in said and f"dpd evaluate {out / 'ppo.zip'}" in said
    assert not any(name in word for word in hub.asked for name in ("evil", "model.pkl", ".pth"))
    assert not any("escaped" in word or "replay" in word for word in hub.asked)
    assert dpd.pull(REPO, "good.safetensors").meta.env_id == "Swimmer-v5"
    with pytest.raises(ValueError, match=r"broken\.safetensors"):
        dpd.pull(REPO, "broken.safetensors")
    with pytest.raises(ValueError, match=r"name one of the policy files of me/swimmer; it has br"):
        dpd.pull(REPO)


def test_a_single_policy_file_can_be_pushed(hub: Hub, run_dir: Path) -> None:
    file = run_dir / "policies" / "seed0-peer1-best.safetensors"
    assert main(["push", str(file), REPO, "--episodes", "1"]) == 0
    names = {"README.md", "policies/seed0-peer1-best.safetensors", "policy.safetensors"}
    assert hub.repos[REPO].keys() == names
    assert "dpd train" not in hub.repos[REPO]["README.md"].decode()


def made_by(policy: Policy, seed: int, **changes: Any) -> Policy:
    """Describe a policy as one of a seed."""
    return Policy(policy.tensors, replace(policy.meta, provenance={"seed": seed}, **changes))


def test_intervals_of_a_card_are_over_episodes_and_over_seeds(tmp_path: Path) -> None:
    policy = saved(tmp_path, "ppo", "Swimmer-v5")
    # Mean 20, standard deviation 10, t = 4.303 for 2 degrees of freedom: 20 ± 4.303 · 10 / √3.
    # Seeds 20 and 22: mean 21 ± 12.706 · √2 / √2.
    returns = {"seed0-peer0": [10.0, 20.0, 30.0], "seed1-peer0": [22.0, 22.0, 22.0]}
    lengths = np.ones((1, 3), int)
    content = Publication(
        repo=REPO,
        policies={name: made_by(policy, seed) for seed, name in enumerate(returns)},
        results={name: EvalResult(np.array([each]), lengths) for name, each in returns.items()},
        best="seed0-peer0",
    )
    text = card_text(content)
    assert "| **seed0-peer0** | 20 | -5…45 | 10 | 3 |" in text
    assert "Over 2 seeds, the mean of the last policies is 21" in text
    assert "95 % t interval of 8 to 34" in text
    assert "value: 20.00 +/- 10.00" in text and "## What it sees" not in text


def test_what_a_policy_sees_is_on_its_card_and_names_cannot_break_it(tmp_path: Path) -> None:
    view = View(obs_dim=8, act_dim=2, columns=(0, 1, 2), groups=("qpos",), history=4)
    policy = made_by(saved(tmp_path, "ppo", "Swimmer-v5"), 0, view=view, env_id="A`\n# B")
    result = EvalResult(np.array([[1.0]]), np.ones((1, 1), int))
    text = card_text(
        Publication(repo=REPO, policies={"p": policy}, results={"p": result}, best="p")
    )
    assert "The policy sees 3 of 8 numbers of an observation: qpos; 4 frames. It keeps" in text
    assert "\n# B" not in text and "`A' # B`" in text


def test_a_task_of_envpool_alone_is_played_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = made_by(saved(tmp_path, "ppo", "Swimmer-v5"), 0)
    result = EvalResult(np.array([[1.0]]), np.ones((1, 1), int))
    content = Publication(repo=REPO, policies={"p": policy}, results={"p": result}, best="p")
    assert "gymnasium.make" in card_text(content)
    monkeypatch.setattr("dpd.hub.card.choose_backend", lambda *_, **__: "envpool")
    text = card_text(content)
    assert "gymnasium.make" not in text and f"dpd pull {REPO}\ndpd evaluate " in text


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("train", "Hopper-v5"),
        ("train", "Hopper-v5 --preset paper --distill.steps 5"),
        ("train", "Hopper-v5 --algo ppo,sac --preset modern"),
        ("train", "Hopper-v5 --algo sac --preset modern --seeds 3 --peer-lr 1e-3 1e-4"),
        ("train", "Ant-v5 --method none --peers 1 --no-norm-obs --hidden 32 16 --target-kl 0.02"),
        ("train", "Hopper-v5 --distill.gate hard --distill.control shuffled --actor-obs qpos"),
        ("distill", "Hopper-v5 --teacher t --method kickstart --history 4 --student-obs qpos"),
    ],
)
def test_the_command_on_a_card_makes_the_same_run(command: str, flags: str) -> None:
    config = parse_run(flags.split(), command)
    words = training_command(config, parse_run).split()
    assert words[:2] == ["dpd", command] and "--config" not in words
    assert parse_run(words[2:], command).as_json() == config.as_json()


def test_a_run_that_flags_cannot_describe_is_made_from_its_settings() -> None:
    # The defaults of these peers are refused, so that nothing can be compared with them.
    words = ["Hopper-v5", "--algo", "ppo,sac", "--distill.ruler", "action"]
    command = training_command(parse_run(words, "train"), parse_run)
    assert command == "dpd train --config config.json"


def test_teachers_are_published_by_name() -> None:
    config = published(parse_run(["Hopper-v5", "--teacher", "/home/me/runs/t"], "distill"))
    assert training_command(config, parse_run) == "dpd distill Hopper-v5 --teacher t"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["push", "{run}", "swimmer"], "named OWNER/NAME, not 'swimmer'"),
        (["push", "{run}", REPO, "--episodes", "0"], "--episodes must be at least 1"),
        (["push", "{run}", REPO, "--preview", "p", "--private"], "--private does nothing"),
        (["push", "{run}", REPO, "--preview", "."], "exists; give --preview a new"),
        (["push", "empty", REPO], "contains no policies"),
        (["push", "nowhere", REPO], "does not exist"),
        (["push", "a.zip", REPO], "dpd export a.zip --env ENV --format dpd"),
        (["pull", REPO], "there is no repository me/swimmer"),
        (["pull", "me/bare"], "has no policies"),
        (["pull", "me/bare", "--revision", "v9"], "has no revision v9"),
        (["pull", "me/bad"], "no policies that dpd can read: x.safetensors"),
        (["pull", REPO, "--out", "empty"], "exists; give --out a new directory"),
        (["pull", REPO, "--out", "no/where"], "no is not a directory"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(
    argv: list[str],
    says: str,
    hub: Hub,
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = tmp_path / "here"
    (here / "empty").mkdir(parents=True)
    monkeypatch.chdir(here)
    hub.repos |= {"me/bare": {"README.md": b""}, "me/bad": {"x.safetensors": b"no"}}
    assert main([word.format(run=run_dir) for word in argv]) == 2
    said = capsys.readouterr().err.splitlines()
    assert says in said[-1] and said[-1].startswith("dpd: ")
    assert [file.name for file in here.iterdir()] == ["empty"]


def test_a_missing_token_package_or_permission_is_named(
    hub: Hub, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["push", str(run_dir), REPO, "--episodes", "1"]
    monkeypatch.setenv("HF_TOKEN", READ_ONLY)
    assert main(argv) == 2
    assert "refuses access to me/swimmer (status 403)" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    assert main(argv) == 2
    assert "hf auth login, or set HF_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert main(["pull", REPO]) == 2
    assert "cannot reach the hub" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["pull", REPO]) == 2
    assert "pip install 'dpd[hub]'" in capsys.readouterr().err
    assert not hub.repos
