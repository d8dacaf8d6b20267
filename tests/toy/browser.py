"""A real browser without a window: pictures of a page, and what its console says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
from matplotlib.image import imread

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
WHY_NOT = f"no browser: none of {', '.join(NAMES)} is installed"
DARK = "--blink-settings=preferredColorScheme=0"


def screenshot(
    page: Path, size: tuple[int, int], is_dark: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Return a picture of a page [height, width, 3] in [0, 1], and the lines of its console."""
    picture = page.with_suffix(".png")
    command = [
        str(BROWSER),
        "--headless",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",  # the page must need no host
        f"--user-data-dir={page.parent / 'browser'}",
        f"--window-size={size[0]},{size[1]}",
        f"--screenshot={picture}",
        "--enable-logging=stderr",
        "--v=0",
    ]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    command += [DARK] if is_dark else []
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    said = re.findall(r"CONSOLE.*", done.stderr)
    return imread(picture)[..., :3], said
