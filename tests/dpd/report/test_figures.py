import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from dpd.report.figures import (
    COLOURS,
    SHARES,
    Line,
    binned,
    caption,
    compared_caption,
    compared_curves,
    draw_evaluations,
    format_axes,
    learning_curves,
    line_style,
    read_curves,
)

EVALUATED = (0, 500_000, 1_000_000)


def write_metrics(
    path: Path,
    names: Sequence[str] = ("eval/return", "train/return"),
    seeds: int = 2,
    peers: int = 2,
) -> Path:
    """Write metrics whose value is 1000 * seed + 100 * peer + step / 10,000, or 0.5."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "seed", "peer", "metric", "value"))
        writer.writerow((0, "", "", "time/eval", 1.5))
        for name in names:
            for step in EVALUATED:
                for seed in range(seeds):
                    for peer in range(peers):
                        value = 1000 * seed + 100 * peer + step / 10_000
                        value = 0.5 if name in SHARES else value
                        writer.writerow((step, seed, peer, name, value))
    return path


def has_colour(image: np.ndarray, colour: str) -> bool:
    """Return whether a pixel has the colour."""
    return bool((np.abs(image[..., :3] - to_rgb(colour)) < 0.02).all(axis=-1).any())


def test_metrics_are_read_by_name_peer_and_step(tmp_path: Path) -> None:
    path = write_metrics(tmp_path / "metrics.csv")
    with path.open("a") as file:
        file.write("1000000,0,1,eval/return,nan\n")
    curves, seeds = read_curves(path, ["eval/return"])
    assert seeds == 2 and set(curves) == {"eval/return"}
    assert curves["eval/return"][1] == {
        0: [100.0, 1100.0],
        500_000: [150.0, 1150.0],
        1_000_000: [200.0, 1200.0],
    }


def test_the_line_is_the_interquartile_mean_and_the_band_the_range() -> None:
    axes = Figure().add_subplot()
    draw_evaluations(
        axes, 0, {10: [0.0, 1.0, 3.0, 100.0], 20: [5.0, 5.0, 7.0, 7.0]}, "a", band=True
    )
    assert np.asarray(axes.lines[0].get_xydata()).tolist() == [[10, 2], [20, 6]]
    corners = np.asarray(axes.collections[0].get_paths()[0].vertices).tolist()
    assert {(10, 0), (10, 100), (20, 5), (20, 7)} <= {tuple(corner) for corner in corners}


def test_long_training_curves_are_averaged_in_bins() -> None:
    steps, means = binned({step: [float(step), step + 2.0] for step in range(1, 100_001)})
    assert len(steps) <= 161
    assert means == pytest.approx([step + 1 for step in steps])


def test_the_caption_explains_the_lines() -> None:
    both = {"eval/return": {0: {0: [1.0]}}, "train/return": {0: {0: [1.0]}}}
    assert caption(both, 1) == "deterministic evaluation; faint: training episodes"
    assert "interquartile mean and range of 10 seeds" in caption(both, 10)
    assert ", mean and range of 3 seeds" in caption(both, 3)


def test_peers_beyond_the_palette_differ_in_their_dashes() -> None:
    looks = [tuple(line_style(peer).values()) for peer in range(2 * len(COLOURS))]
    assert len(set(looks)) == len(looks)


def test_ticks_count_in_thousands_and_millions() -> None:
    axes = Figure().add_subplot()
    axes.plot([0, 2_000_000], [-500, 12_000])
    format_axes(axes, 2_000_000, "environment steps")
    assert axes.xaxis.get_major_formatter()(1_500_000, 0) == "1.5 M"
    assert axes.yaxis.get_major_formatter()(10_000, 0) == "10,000"


def test_the_picture_shows_both_peers(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv")
    learning_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", "Hopper-v5")
    image = imread(tmp_path / "curves.png")
    assert has_colour(image, COLOURS[0]) and has_colour(image, COLOURS[1])
    assert not has_colour(image, COLOURS[2])


@pytest.mark.parametrize(
    "logged", [("action_distance", "peer_ahead"), ("agree_0.1", "coverage", "student_weight")]
)
def test_distillation_metrics_add_panels(tmp_path: Path, logged: Sequence[str]) -> None:
    narrow = write_metrics(tmp_path / "plain.csv")
    names = ("eval/return", *(f"distill/{name}" for name in logged))
    wide = write_metrics(tmp_path / "distilled.csv", names)
    for path in (narrow, wide):
        learning_curves(path, path.with_suffix(".png"), "Hopper-v5")
    plain, distilled = (imread(path.with_suffix(".png")) for path in (narrow, wide))
    assert plain.shape[0] == distilled.shape[0] and distilled.shape[1] > 1.3 * plain.shape[1]
    right = distilled[:, int(distilled.shape[1] * 0.7) :]
    assert has_colour(right, COLOURS[1])


def test_one_learner_with_training_returns_only_is_enough(tmp_path: Path) -> None:
    write_metrics(tmp_path / "m.csv", ("train/return",), seeds=1, peers=1)
    learning_curves(tmp_path / "m.csv", tmp_path / "m.png", "Hopper-v5")
    assert imread(tmp_path / "m.png").std() > 0.01


def test_without_returns_nothing_is_drawn(tmp_path: Path) -> None:
    write_metrics(tmp_path / "m.csv", ("loss/policy",))
    learning_curves(tmp_path / "m.csv", tmp_path / "m.png", "Hopper-v5")
    assert not (tmp_path / "m.png").exists()


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    path = write_metrics(tmp_path / "m.csv")
    program = (
        "import sys, pathlib, dpd.report.figures as p; assert 'matplotlib' not in sys.modules;"
        "f = pathlib.Path(sys.argv[1]); p.learning_curves(f, f.with_suffix('.png'), 't');"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "False\n", done.stderr


TAUGHT = Line("taught", [10, 20], [1.0, 3.0], [(0.0, 2.0), (2.0, 4.0)], "range")
EXPERT = Line("expert", [], [5.0], [], "")


def test_runs_have_different_colours_and_no_draft_is_left(tmp_path: Path) -> None:
    out = tmp_path / "c.png"
    compared_curves([TAUGHT, EXPERT], out, "Hopper-v5")
    image = imread(out)
    assert image.shape == (900, 1480, 4)  # 7.4 x 4.5 inches at 200 dots
    assert has_colour(image, COLOURS[0]) and has_colour(image, COLOURS[1])
    assert not has_colour(image, COLOURS[2])
    assert list(tmp_path.iterdir()) == [out]


def test_the_caption_names_the_bands_and_levels_that_are_there() -> None:
    alone = TAUGHT._replace(name="alone", spread="95 % bootstrap interval")
    assert "\n" not in compared_caption([TAUGHT._replace(spread="")])
    assert compared_caption([TAUGHT, TAUGHT]).endswith("\nbands: range")
    assert compared_caption([TAUGHT, alone, EXPERT]).endswith(
        "\nbands: 95 % bootstrap interval or range; dashed: fresh episodes of a saved policy"
    )


def test_an_incomplete_last_line_is_ignored(tmp_path):
    file = tmp_path / "metrics.csv"
    whole = "step,seed,peer,metric,value\n100,0,0,eval/return,5\n"
    file.write_text(whole + "200,0,0,eval/return,7")  # may be the start of 7.25
    assert read_curves(file, ["eval/return"]) == ({"eval/return": {0: {100: [5.0]}}}, 1)
