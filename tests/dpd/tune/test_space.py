"""Spaces of a search: TOML files, command lines, and refusals."""

from pathlib import Path

import pytest

from dpd.tune.space import Choices, FlagRange, read_space, space_words, text_of

EVERYTHING = """
lr = { low = 1e-4, high = 1e-2, log = true }
epochs = { low = 3, high = 20 }
clip = { low = 0.1, high = 0.4, step = 0.1 }
gamma = [0.98, 0.99]
hidden = [[64, 64], [256, 256]]
norm_obs = [true, false]
distill.alpha = { low = 0.5, high = 5.0 }

[distill.gate]
low = 1
high = 2
"""


def space_file(folder: Path, text: str) -> Path:
    """Write a space."""
    path = folder / "space.toml"
    path.write_text(text)
    return path


def test_ranges_choices_and_nested_flags_are_read(tmp_path: Path) -> None:
    space = read_space(space_file(tmp_path, EVERYTHING))
    assert space == {
        "lr": FlagRange(1e-4, 1e-2, log=True),
        "epochs": FlagRange(3, 20),
        "clip": FlagRange(0.1, 0.4, step=0.1),
        "gamma": Choices((0.98, 0.99)),
        "hidden": Choices(([64, 64], [256, 256])),
        "norm-obs": Choices((True, False)),
        "distill.alpha": FlagRange(0.5, 5.0),
        "distill.gate": FlagRange(1, 2),
    }
    assert [e.is_whole for e in space.values() if isinstance(e, FlagRange)] == [
        *(False, True, False, False, True)
    ]
    shown = [str(space[name]) for name in ("lr", "epochs", "clip", "hidden")]
    assert shown == [
        "0.0001 to 0.01, log",
        "whole numbers 3 to 20",
        "0.1 to 0.4 in steps of 0.1",
        "[64, 64], [256, 256]",
    ]


def test_values_are_written_as_flags() -> None:
    values = {"lr": 0.00123456, "hidden": [64, 32], "norm-obs": False, "distill.x": True}
    assert space_words(values) == [
        *("--lr", "0.00123456", "--hidden", "64", "32"),
        *("--no-norm-obs", "--distill.x"),
    ]
    assert space_words({"distill.x": False}) == ["--distill.no-x"]
    assert text_of(0.00123456) == "0.001235" and text_of([64, 32]) == "[64, 32]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = 3", "lr needs { low = ..., high = ... } or a list of at least two values, not 3"),
        ("lr = [3]", "a fixed flag goes after the --"),
        ("lr = { low = 1, hihg = 2 }", "lr has no 'hihg'; known: low, high, log, step"),
        ("lr = { low = 1 }", "lr needs numbers low < high"),
        ("lr = { low = 2, high = 1 }", "lr needs numbers low < high"),
        ("lr = { low = 0.0, high = 1.0, log = true }", "above 0 for log = true"),
        ("lr = { low = 1, high = 9, log = true, step = 2 }", "a step above 0 only without it"),
        ("lr = { low = '1', high = 2 }", "lr needs numbers low < high"),
        ("", "names no flag; write for example gamma = [0.98, 0.99]"),
        ("lr", "is not TOML"),
    ],
)
def test_a_wrong_space_is_refused_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        read_space(space_file(tmp_path, text))
    assert message in str(refused.value) and "\n" not in str(refused.value).strip()


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot read --space no\.toml: No such file"):
        read_space(Path("no.toml"))
