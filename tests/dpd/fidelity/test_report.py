"""`dpd fidelity` from end to end: policies of random weights on a Hopper that soon falls."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dpd.cli import main
from dpd.fidelity.audit import MEASURES
from dpd.fidelity.states import SETS, AuditSettings
from dpd.policies.policyfile import Policy, load
from dpd.run.episodes import evaluate_policy
from tests.toy import policies as made
from tests.toy import zips as foreign
from tests.toy.html import Reader
from tests.toy.policies import write

SMALL = ["--episodes", "3", "--states", "40", "--threads", "1"]
NAME = "<b>&\"$x^2$'"
SCRIPT = "<script src='http://example.com/x.js'></script>"


def changed(policy: Policy, noise: float, **meta: Any) -> Policy:
    """Return a copy with noise on its weights and other metadata."""
    generator = torch.Generator().manual_seed(1)
    tensors = {
        k: v + noise * torch.randn(v.shape, generator=generator) if k.startswith("actor") else v
        for k, v in policy.tensors.items()
    }
    return Policy(tensors, replace(policy.meta, **meta))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a teacher, students close to it and far from it, and policies of other kinds."""
    folder = tmp_path_factory.mktemp("policies")
    teacher = made.saved(folder / "made", "ppo", "Hopper-v5")
    write(folder / "teacher.safetensors", teacher)
    write(folder / f"{NAME}.safetensors", changed(teacher, 0.01, provenance={"note": SCRIPT}))
    write(folder / "far.safetensors", changed(teacher, 0.5))
    write(folder / "sac.safetensors", made.saved(folder / "made", "sac", "Hopper-v5", hidden=(4,)))
    write(folder / "td3.safetensors", made.saved(folder / "made", "td3", "Hopper-v5"))
    return folder


def fidelity(capsys: pytest.CaptureFixture[str], out: Path, *argv: str | Path) -> dict[str, Any]:
    """Run the command; return its JSON."""
    capsys.readouterr()
    assert main(["fidelity", *map(str, argv), *SMALL, "--out", str(out), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_policy_is_wholly_faithful_to_itself(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = files / "teacher.safetensors"
    found = fidelity(capsys, tmp_path, file, file)
    (student,) = found["students"]
    assert student["sets"].keys() == SETS.keys() - {"train"}
    for row in student["sets"].values():
        assert abs(row["kl_forward"]) < 1e-6 and abs(row["kl_reverse"]) < 1e-6
        assert row["agree_0.05"] == row["agree_0.1"] == row["r2_min"] == 1 and row["n"] == 40
        assert row["cka"] == pytest.approx(1, abs=1e-9) and row["action_error"] == 0
    assert student["returns"] == found["teacher"]["returns"]
    assert student["ratio"] == student["compression"] == 1
    for key in ("file", "sha256", "bytes", "parameters", "provenance"):
        assert student[key] == found["teacher"][key]
    expected = evaluated_again(found, file)
    assert found["teacher"]["return"] == pytest.approx(expected)


def evaluated_again(found: dict[str, Any], file: Path) -> float:
    """Return the mean return that `dpd evaluate`'s own function finds for the same episodes."""
    seed = AuditSettings(env_id=found["env"], seed=found["seed"]).seed_of(0)
    return float(evaluate_policy(load(file), found["env"], 3, seed, 1).returns.mean())


def test_students_and_the_floor_are_rows_beside_each_other(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [files / f"{name}.safetensors" for name in ("teacher", NAME, "far", "sac")]
    found = fidelity(capsys, tmp_path, *paths, "--floor", files / "td3.safetensors")
    near, far, sac, _ = found["students"]
    assert [s["name"] for s in found["students"]] == [NAME, "far", "sac", "td3"]
    assert [s["is_floor"] for s in found["students"]] == [False, False, False, True]
    for name in SETS.keys() - {"train"}:
        a, b = near["sets"][name], far["sets"][name]
        assert 0 < a["kl_forward"] < b["kl_forward"] and 0 < a["kl_reverse"] < b["kl_reverse"]
        assert 0 < a["action_error"] < b["action_error"] and a["cka"] > b["cka"]
        assert b["agree_0.05"] < a["agree_0.05"] <= a["agree_0.1"] and a["r2_min"] > b["r2_min"]
        assert len(a["r2"]) == 3 and sac["sets"][name]["kl_forward"] is None
    # teacher: 11·16 + 16 + 16·8 + 8 + 8·3 + 3 weights and biases, 3 deviations; sac: 11·4 + 4 and
    # two heads of 4·3 + 3
    assert found["teacher"]["parameters"] == 358 and sac["parameters"] == 78
    assert sac["compression"] == pytest.approx(358 / 78)
    assert sac["bytes"] == paths[3].stat().st_size
    assert all(s["latency_us"] > 0 and s["actions_per_s"] > 0 for s in found["students"])
    assert any(n.startswith("no KL for sac: it has no closed form") for n in found["notes"])
    assert any(n.startswith("no KL for td3: the actions of td3 are") for n in found["notes"])
    assert any(
        n.startswith(f"training states are unknown for {NAME}, far, sac:") for n in found["notes"]
    )
    assert any(n.startswith("no value gap: it needs the value functions") for n in found["notes"])
    assert any(n.startswith("the bootstrap intervals of the retained") for n in found["notes"])  # 3
    assert near["gap"]["seen"] == "teacher"
    check_what_was_written(found, tmp_path)


def check_what_was_written(found: dict[str, Any], out: Path) -> None:
    """Check the JSON, the Markdown, the page and the events of the four students."""
    written = {f.name for f in out.iterdir()}
    assert written == {"fidelity.html", "fidelity.json", "fidelity.md", "tb"}
    text = (out / "fidelity.md").read_text()
    assert "| random actions |" in text and "<script" not in text
    assert json.loads((out / "fidelity.json").read_text()) == found
    html = (out / "fidelity.html").read_text()
    seen = Reader()
    seen.feed(html)
    assert all(x.startswith(("data:image/png;base64,", "#")) for x in seen.refers)
    assert not {"script", "link", "iframe", "b", "img"} & set(seen.tags) and "@import" not in html
    assert seen.tags.count("svg") == 2 + 4  # bars, histogram, a scatter for each
    assert not re.search(r"url\((?!#)", html)
    for picture in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(picture)  # well-formed, whatever the policies are called
    ids = re.findall(r'<clipPath id="(\w+)"', html)
    assert len(ids) == len(set(ids))
    for text in (NAME, SCRIPT, found["teacher"]["sha256"]):
        assert text in seen.text  # as text, whatever it looks like
    assert "prefers-color-scheme: dark" in html
    assert all(m.meaning in seen.text for m in MEASURES.values())
    assert len(list((out / "tb").iterdir())) == 4
    events = EventAccumulator(str(out / "tb" / "fidelity-far")).Reload()
    (event,) = events.Scalars("fidelity/heldout/agree_0.05")
    far = found["students"][1]
    assert event.value == pytest.approx(far["sets"]["heldout"]["agree_0.05"]) and event.step == 1000
    (event,) = events.Scalars("eval/student_return")
    assert event.value == pytest.approx(far["return"])


def test_what_was_trained_on_separates_little_data_from_poor_optimisation(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = tmp_path / "states.npy"
    np.save(states, np.random.default_rng(0).normal(size=(30, 11)) + 1)
    argv = (files / "teacher.safetensors", files / "far.safetensors", "--train-states", states)
    out = tmp_path / "out"
    found = fidelity(capsys, out, *argv, "--floor", files / "sac.safetensors")
    far, floor = found["students"]
    assert far["sets"]["train"]["n"] == 30 and "train" not in floor["sets"]
    assert far["gap"]["seen"] == "train"
    train, heldout = far["sets"]["train"], far["sets"]["heldout"]
    for name in ("action_error", "cka", "kl_forward"):
        assert far["gap"][name] == pytest.approx(heldout[name] - train[name])
    assert far["gap"]["unfitted"] == pytest.approx(1 - train["agree_0.05"])
    assert found["notes"][0].startswith("far is off by more than 0.05 on ")
    assert fidelity(capsys, out, *argv)["students"][0]["sets"] == far["sets"]  # without the floor
    assert len(list((out / "tb" / "fidelity-far").iterdir())) == 1  # in place of the first


def test_a_run_stands_for_the_policy_that_training_found_best(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = load(files / "teacher.safetensors")
    for peer, value in enumerate([5.0, 7.0, None]):
        origin = {"eval_return": value}
        write(
            tmp_path / f"run/policies/seed0-peer{peer}.safetensors",
            changed(policy, 0, provenance=origin),
        )
    found = fidelity(capsys, tmp_path / "out", tmp_path / "run", files / "far.safetensors")
    assert found["teacher"]["file"].endswith("seed0-peer1.safetensors")
    assert found["teacher"]["name"] == "run"


def test_a_zip_acts_in_the_teachers_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = made.saved(tmp_path, "ppo", "Pendulum-v1")
    file = write(tmp_path / "teacher.safetensors", teacher)
    student, _, _ = foreign.trained(tmp_path, steps=64)
    found = fidelity(capsys, tmp_path / "out", file, student)
    assert found["env"] == "Pendulum-v1" and found["students"][0]["algo"] == "ppo"
    assert found["students"][0]["sets"]["student"]["kl_forward"] > 0


def test_the_tables_fit_80_columns(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    argv = ["fidelity", files / "teacher.safetensors", files / f"{NAME}.safetensors", *SMALL]
    assert main(list(map(str, argv))) == 0
    said = capsys.readouterr().out.splitlines()
    table = [line for line in said if not line.startswith(("note: ", "report "))]
    assert max(map(len, table)) <= 80
    heldout = next(line.split() for line in table if line.strip().startswith("heldout "))
    assert len(heldout) == 1 + 8 and all(float(x.lstrip("<")) <= 1 for x in heldout[1:])
    assert said[-1].split() == ["report", "fidelity/fidelity.html"]
    assert (tmp_path / "fidelity/fidelity.json").exists()


def test_bad_input_is_refused_in_one_line(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, far = files / "teacher.safetensors", files / "far.safetensors"
    other = write(tmp_path / "other.safetensors", made.saved(tmp_path, "ppo", "Swimmer-v5"))
    wide = load(teacher)
    wide.tensors["act_high"] = wide.tensors["act_high"] * 2
    bounds = write(tmp_path / "bounds.safetensors", wide)
    unsaid = tmp_path / "run/policies"
    for peer in (0, 1):
        write(unsaid / f"seed0-peer{peer}.safetensors", changed(wide, 0, provenance={}))
    pickled, thin = tmp_path / "pickled.npy", tmp_path / "thin.npy"
    np.save(pickled, np.array([foreign.Bomb(tmp_path / "bomb")], dtype=object))
    np.save(thin, np.zeros((5, 4)))
    (tmp_path / "empty").mkdir()
    taken = write(tmp_path / "taken", wide)
    cases: list[tuple[list[str | Path], str]] = [
        ([teacher], "student"),
        (
            [teacher, other],
            "other reads 8 observations and gives 2 actions; its teacher teacher reads 11",
        ),
        ([teacher, bounds], "bounds has different action bounds than teacher"),
        ([teacher, tmp_path / "none"], "does not exist"),
        ([teacher, tmp_path / "empty"], "is not a run directory: it contains no policies"),
        ([teacher, tmp_path / "run"], "has no record of which policy is the best"),
        ([teacher, far, far], "given twice"),
        ([teacher, far, "--env", "Swimmer-v5"], "Swimmer-v5 has 8 and 2"),
        ([teacher, far, "--train-states", pickled], "is not an .npy file of states"),
        ([teacher, far, "--train-states", thin], "must hold numbers [states, 11]"),
        ([teacher, far, "--vecnormalize", thin], "--vecnormalize is for Stable-Baselines3 zips"),
        ([teacher, far, "--episodes", "0"], "--episodes must be at least 1"),
        ([teacher, far, "--states", "1"], "--states must be at least 2"),
        ([teacher, far, "--out", taken], "cannot write"),
    ]
    for argv, says in cases:
        assert main(["fidelity", "--out", str(tmp_path / "out"), *map(str, argv)]) == 2, says
        said = capsys.readouterr()
        assert says in said.err.lower() + said.err and said.err.count("\n") == 1 and not said.out
    assert not (tmp_path / "out").exists() and not (tmp_path / "bomb").exists()
