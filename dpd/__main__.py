"""`python -m dpd` and the command `dpd`."""

import os
import sys


def main() -> None:
    """Run the command line and exit with its status."""
    # Threads that wait must sleep: where another program holds a core, OpenMP's default of
    # spinning at the end of every small operation made updates two to three times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from dpd.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
