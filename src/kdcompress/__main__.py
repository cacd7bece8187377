"""``python -m kdcompress``, and under torchrun ``torchrun … -m kdcompress``."""

import sys


def main() -> None:
    """The command line."""
    from kdcompress.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
