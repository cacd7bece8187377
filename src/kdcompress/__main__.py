"""``python -m kdcompress``, or ``torchrun … -m kdcompress``."""

import signal
import sys


def main() -> None:
    """The command line."""
    try:
        from kdcompress.streams import secure

        secure()
        from kdcompress.cli import run

        status = run(sys.argv[1:])
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # everything is saved; only libraries clean up
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
