"""`python -m dpd` and the command `dpd`."""

import os
import sys


def main() -> None:
    """Run the command line and exit with its status."""
    # Threads that wait must sleep: where another program holds a core, OpenMP's default of
    # spinning at the end of every small operation made updates two to three times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    find_local_modules()
    from dpd.cli import main as run

    sys.exit(run())


def find_local_modules() -> None:
    """Let `module:Id` name a module in the current directory, as `python -m dpd` does by itself.

    Workers and torchrun start `python -m dpd`: without this, only the command `dpd` would not see
    the module. Python's own switch for not looking there (-P, PYTHONSAFEPATH) is respected.
    """
    here = os.getcwd()
    if not sys.flags.safe_path and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


if __name__ == "__main__":
    main()
