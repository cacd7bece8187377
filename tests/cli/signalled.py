"""The command line in a process that gets a signal in a training step: signalled.py SIGNAL STEP [--group] ARGUMENTS….

Tests that wait for a line and then send a signal fail where a busy machine lets the training end before.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from kdcompress.__main__ import main
from kdcompress.engine.fit import Trainer


def signalled(number: int, step: int, group: bool) -> None:
    """Send a signal to this process, or to its group, at the beginning of its so many-th step, counted from 1."""
    genuine, steps = Trainer._step, [0]

    def counted(self: Trainer, *given: Any) -> bool:
        steps[0] += 1
        if steps[0] == step:
            (os.killpg if group else os.kill)(os.getpid(), number)
        return genuine(self, *given)

    Trainer._step = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    own, arguments = sys.argv[1:3], sys.argv[3:]
    to_group = arguments[0] == "--group"
    if to_group:
        os.setsid()  # else the tests would be in the same group
    signalled(*map(int, own), group=to_group)
    sys.argv = ["kdcompress", *arguments[to_group:]]
    main()
