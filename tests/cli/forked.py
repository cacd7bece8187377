"""A command in a process that is forked from one that has imported torch already, as those of ``ranks`` are.

It can be killed, and sent signals, like one that a user started; importing torch anew takes seconds. Where the start
itself, the process group or a terminal is what a test is about, ``shell.spawn`` it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cli.ranks import become, forkserver
from cli.shell import environment


class Forked:
    """What a test asks of a ``subprocess.Popen``: its standard error is a pipe."""

    def __init__(self, arguments: Sequence[str], cwd: Path) -> None:
        number = len(list(cwd.parent.glob("forked-*.out")))
        self._out, err = (cwd.parent / f"forked-{number}.{stream}" for stream in ("out", "err"))
        self._out.touch()
        os.mkfifo(err)
        told = ("kdcompress", list(arguments), cwd, environment(), self._out, err, None)
        self._process = forkserver().Process(target=become, args=told)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self.stderr = os.fdopen(os.open(err, os.O_RDONLY))  # waits until the process has opened it, too

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Standard output and what is left of standard error."""
        err = self.stderr.read()
        self.stderr.close()
        self._process.join(timeout)
        assert self.returncode is not None, "it does not end"
        return self._out.read_text(), err
