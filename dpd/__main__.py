"""`python -m dpd` and the command `dpd`."""

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    from dpd.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
