"""`dpd sweep` from end to end: a policy of random weights on a Hopper that soon falls."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from dpd.cli import main
from dpd.fidelity.config import SweepConfig
from dpd.fidelity.sweep import FACTORS
from tests.toy import policies as made
from tests.toy.html import Reader
from tests.toy.policies import write

SMALL = ["--sizes", "30", "60", "--steps", "20", "--seeds", "2", "--episodes", "2"]
SMALL += ["--states", "20", "--threads", "1"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Sweep once; return the directory, its JSON, and what was printed."""
    folder = tmp_path_factory.mktemp("swept")
    teacher = write(folder / "good.safetensors", made.saved(folder / "made", "ppo", "Hopper-v5"))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as said:
        patch.setenv("COLUMNS", "80")
        assert main(["sweep", str(teacher), *SMALL, "--out", str(folder / "out")]) == 0
    out = folder / "out"
    return out, json.loads((out / "sweep.json").read_text()), said.getvalue()


def test_every_variant_is_there_with_every_seed(found: tuple[Path, dict[str, Any], str]) -> None:
    _, data, _ = found
    assert data["factors"].keys() == FACTORS.keys() and data["teacher"]["name"] == "good"
    # 2 + 3 + 2 + 2 + 4 + 5 variants, five of them the common one again; two seeds of each
    assert len(data["students"]) == 2 * (18 - 5)
    assert {each["seed"] for each in data["students"]} == {0, 1}
    for each in data["students"]:
        assert each["sets"].keys() == {"train", "heldout", "student"} and len(each["returns"]) == 2
        assert each["sets"]["train"]["n"] == 20
        expected = [each["sets"][k]["action_error"] for k in ("heldout", "train")]
        assert each["gap_error"] == pytest.approx(expected[0] - expected[1])


def test_a_student_that_starts_as_its_teacher_stays_it(
    found: tuple[Path, dict[str, Any], str],
) -> None:
    _, data, _ = found
    same = [each for each in data["students"] if each["weight"] == 1]
    assert len(same) == 2
    for each in same:
        assert each["start_kl"] == pytest.approx(0, abs=1e-9)
        assert each["returns"] == data["teacher"]["returns"] and each["heldout_agree_0.1"] == 1
    by_weight: dict[float, list[float]] = {w: [] for w in data["factors"]["weight"]["values"]}
    base = {"states": 60, "augmentation": "none", "optimiser": "adam", "length": 1, "capacity": 1}
    for each in data["students"]:
        if all(each[k] == v for k, v in base.items()):
            by_weight[each["weight"]].append(each["heldout_kl"])
    means = [sum(values) / len(values) for values in by_weight.values()]
    assert means == sorted(means, reverse=True)


def test_the_page_loads_nothing_and_the_tables_fit_80_columns(
    found: tuple[Path, dict[str, Any], str],
) -> None:
    out, data, said = found
    assert {file.name for file in out.iterdir()} == {"sweep.html", "sweep.json", "sweep.md"}
    seen = Reader()
    seen.feed((out / "sweep.html").read_text())
    assert all(x.startswith("#") for x in seen.refers) and seen.tags.count("svg") == 2
    assert not {"script", "link", "img"} & set(seen.tags)
    for meaning in FACTORS.values():
        assert meaning in seen.text
    assert data["teacher"]["sha256"] in seen.text
    table = [line for line in said.splitlines() if not line.startswith(("note: ", "report "))]
    assert max(map(len, table)) <= 80
    assert sum(line.split()[:2] == ["start", "1"] for line in table) == 1
    assert "note: a correlation over fewer than 30 students means little" in said


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sizes": (30, 30)}, "--sizes must be different numbers"),
        ({"sizes": (10,)}, "20 at least"),
        ({"steps": 9}, "--steps must be at least 10"),
        ({"states": 19}, "--states must be at least 20"),
        ({"sgd_lr": 0.0}, "--sgd-lr must be positive"),
        ({"seed": -1}, "--seed must not be negative"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SweepConfig(teacher=Path("x"), **settings)


def test_quick_is_a_tenth_of_everything() -> None:
    quick = SweepConfig(teacher=Path("x"), quick=True).resolved()
    assert (quick.sizes, quick.steps, quick.states) == ((100, 1_000, 10_000), 200, 500)
    assert (quick.seeds, quick.episodes, quick.quick) == (1, 3, False)
