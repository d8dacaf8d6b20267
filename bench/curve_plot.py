"""Draw learning curves with those of Stable-Baselines3: a panel per file of bench/curves.py.

python bench/curve_plot.py bench/results/curves-*.json --out docs/beside-sb3.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from curves import along

from dpd.report.figures import INK, format_axes, line_style, new_figure, save_png, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 60


def draw(axes: Axes, data: dict[str, Any]) -> None:
    """Draw mean and range over the learners of each group."""
    sb3 = next(name for name in data["summary"] if name not in data["ours"])
    groups = {f"dpd, {len(r)} seeds in one stack": r for r in data["ours"].values()}
    groups |= {f"{sb3}, {len(data['sb3'])} runs": data["sb3"]}
    end = 0
    for k, (name, by_step) in enumerate(along(groups, POINTS).items()):
        steps, values = list(by_step), np.array(list(by_step.values()))
        colour = line_style(k)["color"]
        axes.fill_between(
            steps, values.min(1), values.max(1), color=colour, alpha=0.14, linewidth=0
        )
        axes.plot(steps, values.mean(1), color=colour, label=name, linewidth=2)
        end = max(end, *steps)
    axes.legend(loc="upper left", frameon=False, fontsize=9.5, handlelength=1.8)
    set_title(axes, f"{sb3.split()[-1]}, {data['settings']['env']}", "mean and range over learners")
    format_axes(axes, end, "environment steps of each learner")


def main() -> int:
    """Read the files and write the figure."""
    parser = argparse.ArgumentParser(description="Draw learning curves with those of SB3.")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, help="a .png")
    args = parser.parse_args()
    figure = new_figure(5.2 * len(args.files), 4.2, dpi=160)
    for k, file in enumerate(args.files):
        draw(axes := figure.add_subplot(1, len(args.files), k + 1), json.loads(file.read_text()))
        axes.set_ylabel("" if k else "training return per episode", color=INK, fontsize=10)
    save_png(figure, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
