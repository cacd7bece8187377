"""How the tests call the command line: in this process where many cases are tried, else as a user's shell does."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from kdcompress.runs import RunFolder

if TYPE_CHECKING:
    from cli.forked import Forked

BIN = Path(sys.executable).parent
TINY = "resnet8_cifar,width=0.25"
ESCAPE = re.compile(r"\x1b|\r")
# what a terminal, a CI system or another test may have set, and a user's plain shell has not
FOREIGN = re.compile(r"KDCOMPRESS_|(NO|FORCE)_COLOR|TTY_|COLUMNS|LINES|CI|(LOCAL_)?(RANK|WORLD_SIZE)|PYTEST_")
SETTINGS = {
    "KDCOMPRESS_DEVICE": "cpu",
    "KDCOMPRESS_PRECISION": "fp32",
    "OMP_NUM_THREADS": "1",
    "TERM": "xterm-256color",
}


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON on standard output, which holds that one line and nothing else."""
        assert self.status == 0, self.err
        assert self.out.endswith("\n"), self.out
        assert len(self.out.splitlines()) == 1, self.out
        return json.loads(self.out)

    def error(self, *words: str, status: int | None = None) -> str:
        """The problem of a well-told user error: two lines, no traceback, no result; ``words`` occur in them."""
        assert self.status in ((1, 2) if status is None else (status,)), (self.status, self.out, self.err)
        assert self.out == ""
        lines = self.err.splitlines()
        assert len(lines) == 2, self.err
        assert re.match(r"Error: \S", lines[0]), self.err
        assert lines[1].strip(), self.err
        assert not lines[1].startswith("Error")
        assert "Traceback" not in self.err
        assert "KDCOMPRESS_DEBUG" not in self.err, f"a user's mistake is reported as an accident of ours: {self.err}"
        for word in words:
            assert word in self.err, f"{word!r} is not in: {self.err}"
        return lines[0]


def environment(**more: str) -> dict[str, str]:
    """That of a user with a plain shell, on one thread of the CPU in fp32."""
    kept = {key: value for key, value in os.environ.items() if not FOREIGN.match(key)}
    return {**kept, **SETTINGS, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **more}


def shell(script: str, cwd: Path, timeout: float = 300, **more: str) -> Done:
    """Run a bash script with the console script on its path."""
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def spawn(
    arguments: Sequence[str], cwd: Path, program: str = "kdcompress", *, group: bool = False
) -> subprocess.Popen[str]:
    """Start ``kdcompress`` (or ``torchrun`` with it) and let it run, if asked for in a process group of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [str(BIN / program), *arguments],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=group,
        preexec_fn=_hangs_up,
    )


def _hangs_up() -> None:
    """A hang-up ends what a user starts, also where the tests run under ``nohup``."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_for(process: subprocess.Popen[str] | Forked, text: str) -> str:
    """Read standard error until a line begins with ``text``."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if line.startswith(text):
            return seen
    raise AssertionError(f"{text!r} never came: {seen}")


def finished(process: subprocess.Popen[str] | Forked) -> Done:
    out, err = process.communicate(timeout=120)
    return Done(process.returncode, out, err)


class Stdin(io.TextIOWrapper):
    """Standard input that is a pipe with ``content`` in it, for commands run in this process."""

    def __init__(self, content: str | bytes) -> None:
        super().__init__(io.BytesIO(content.encode() if isinstance(content, str) else content), encoding="utf-8")


def tree(*folders: Path) -> dict[str, str]:
    """Every file (by hash) and folder below ``folders``."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            found[str(path)] = content
    return found


def photos(
    root: Path, classes: Sequence[str] = ("cat", "dog"), each: int = 6, mode: str = "RGB", side: int = 8
) -> Path:
    """An image folder with train/ and test/, where the brightness of an image tells its class."""
    rng = np.random.default_rng(0)
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    for split in ("train", "test"):
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(each):
                noise = rng.integers(0, 256 // len(classes), shape)
                pixels = (noise + number * 256 // len(classes)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def accept(run: Path) -> Path:
    """Let a run take its files for what it wrote, as after a change of the user's own."""
    RunFolder(run).accept()
    return run


def cut_off(path: Path, share: float = 0.6) -> None:
    """Truncate a file, as an interrupted copy does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
