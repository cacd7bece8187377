"""A command, or a script, in a process that is forked from one that has imported torch already.

It can be killed, sent signals and given any files as streams, like one that a user started; importing torch anew takes
seconds. Where the start itself, the process group or a shell's pipe is what a test is about, see ``cli.shell``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from cli.ranks import become, forkserver
from cli.shell import Done, environment, finished

SIGNALLED = Path(__file__).with_name("signalled.py")


def start(
    arguments: Sequence[str],
    cwd: Path,
    out: Path,
    err: Path,
    program: str = "kdcompress",
    given: Path = Path(os.devnull),
    **more: str,
) -> BaseProcess:
    """Start ``python -m kdcompress ARGUMENTS``, or a script, that appends to these files (or terminals, or pipes).

    Args:
        given: Standard input.
    """
    told = (program, list(arguments), cwd, environment(**more), given, out, err, None)
    process = forkserver().Process(target=become, args=told)
    process.start()
    return process


def script(program: Path, arguments: Sequence[str], work: Path, cwd: Path | None = None, **more: str) -> Done:
    """Run a script to its end, as ``python PROGRAM ARGUMENTS`` would in ``cwd``; its streams are files in ``work``."""
    out, err = work / "script.out", work / "script.err"
    for path in (out, err):
        path.write_text("")
    process = start(arguments, cwd or Path.cwd(), out, err, str(program), **more)
    process.join(300)
    assert process.exitcode is not None, "it does not end"
    return Done(process.exitcode, out.read_text(), err.read_text())


def signalled(number: int, step: int, arguments: Sequence[object], cwd: Path, *, group: bool = False) -> Done:
    """A command whose process, or process group, gets a signal in a step of its training, which is counted from 1."""
    told = [str(int(number)), str(step), *(["--group"] if group else []), *map(str, arguments)]
    return finished(Forked(told, cwd, str(SIGNALLED)))


class Forked:
    """What a test asks of a ``subprocess.Popen``: standard error is a pipe."""

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        program: str = "kdcompress",
        given: Path = Path(os.devnull),
    ) -> None:
        number = len(list(cwd.parent.glob("forked-*.out")))
        self._out, err = (cwd.parent / f"forked-{number}.{stream}" for stream in ("out", "err"))
        self._out.touch()
        os.mkfifo(err)
        self._process = start(arguments, cwd, self._out, err, program, given)
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
