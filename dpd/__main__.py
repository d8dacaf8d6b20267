"""`python -m dpd` and the command `dpd`."""

import os
import sys


def main() -> None:
    """Run the command line and exit with its status."""
    # By default, OpenMP threads spin after every small operation. If another program uses a core,
    # this made updates two to three times slower; passive threads sleep instead.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    find_local_modules()
    from dpd.cli import main as run

    sys.exit(run())


def find_local_modules() -> None:
    """Add the current directory to sys.path, so that `module:Id` finds a module there.

    `python -m dpd`, which workers and torchrun use, adds it by itself; the command `dpd` does not.
    Respects Python's switch against it (-P, PYTHONSAFEPATH).
    """
    here = os.getcwd()
    if not sys.flags.safe_path and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


if __name__ == "__main__":
    main()
