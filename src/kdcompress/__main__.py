"""``python -m kdcompress``, and under torchrun ``torchrun … -m kdcompress``."""

import sys


def main() -> None:
    """The command line."""
    try:
        from kdcompress.streams import secure

        secure()
        from kdcompress.cli import run

        status = run(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
