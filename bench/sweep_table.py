"""Write the table of a sweep into a page.

dpd sweep runs/teacher --out sweep
python bench/sweep_table.py sweep/sweep.json docs/results.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from marked import fill

from dpd.fidelity.sweep import FACTOR_LABELS, FACTORS

COLUMNS = {
    "train_kl": "KL, seen",
    "heldout_kl": "KL, held-out",
    "train_error": "error, seen",
    "heldout_error": "error, held-out",
    "student_error": "error, own",
    "retained": "retained",
}


def lines(data: dict[str, Any]) -> list[str]:
    """Lay out a line per variant, means over seeds."""
    found = [f"| changed | {' | '.join(COLUMNS.values())} |", "|---|" + "---:|" * len(COLUMNS)]
    common = {
        name: max(values, key=lambda v: sum(s[name] == v for s in data["students"]))
        for name, values in ((k, f["values"]) for k, f in data["factors"].items())
    }
    for name in FACTORS:
        for value in data["factors"].get(name, {"values": []})["values"]:
            wanted = common | {name: value}
            own = [s for s in data["students"] if all(s[k] == v for k, v in wanted.items())]
            cells = [f"{np.mean([s[column] for s in own]):.3g}" for column in COLUMNS]
            found.append(f"| {FACTOR_LABELS[name].format(value)} | {' | '.join(cells)} |")
    return found


def main() -> int:
    """Read the JSON, write the table."""
    source, page = map(Path, sys.argv[1:])
    fill(page, "bench/sweep_table.py", lines(json.loads(source.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
