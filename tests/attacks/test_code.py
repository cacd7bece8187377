"""No name in a file or a pipe brings code in, however it is written, and wherever it stands."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attacks.conftest import rewrite
from cli.conftest import Cli
from cli.shell import TINY
from kdcompress import trust
from kdcompress.data import load_source
from kdcompress.errors import UserError
from kdcompress.models.build import ModelSpec, build
from kdcompress.models.loading import load_network

pytestmark = pytest.mark.attack("code that a file or a pipe names")

CODE = (
    "evil:make", "evil.make:make", "subprocess:getoutput,cmd=touch ran", "os:mkdir,path=ran", "os:system",
    "builtins:open,file=ran,mode=w", "builtins:eval", "pathlib:Path.touch", "importlib:import_module,name=evil",
    "timm:create_model,model_name=py:evil:make", "evil:make,width=0.25,num_classes=10",
)  # fmt: skip
BLANKS = ("", " ", "\t", "\n", "\r", "\x0b", "\u00a0", "\u2003", "\u200b", "\ufeff", "\u2060", "\x00")
PREFIXES = (
    "py:",
    "PY:",
    "Py:",
    "py\uff1a",
    "p\u0443:",
    "\uff50\uff59:",
    "py\u200b:",
    "py :",
    "py::",
    "py:py:",
    "py\ua789",
)
AROUND = (
    "{}", "{}", "{}", "local-dir:{}", "hf-hub:{}", "residual_cascade,members={}", "student_assistant,model={}",
    "resnet8_cifar,block={}", "./{}", "{}/", "{},", ",{}", '"{}"', "[{}]", "file://{}", "torch/{}", "synth-digits:{}",
)  # fmt: skip


def names(count: int) -> Iterator[str]:
    """Ways to write the name of code, the plain one first; the same ones each time."""
    yield "py:evil:make"
    draw = random.Random(0)
    for _ in range(count - 1):
        name = draw.choice(PREFIXES) + draw.choice(BLANKS) + draw.choice(CODE) + draw.choice(BLANKS)
        yield draw.choice(AROUND).format(draw.choice(BLANKS) + name)


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the strings of a JSON value are."""
    if isinstance(content, str):
        yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


def replaced(content: Any, path: tuple[Any, ...], value: str) -> Any:
    content = json.loads(json.dumps(content))
    at = content
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return content


@pytest.fixture
def unmarked(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether none of the code has run."""
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.setattr(trust, "_typed", set())  # other tests of this process have typed such names
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    code = "from pathlib import Path\nPath('ran').touch()\ndef make(**given): Path('ran').touch()\n"
    (here / "evil.py").write_text(code)
    imported: list[str] = []
    monkeypatch.setattr("importlib.import_module", _watched(imported))

    def check() -> bool:
        none = not (here / "ran").exists() and "evil" not in sys.modules and not imported
        imported.clear()
        return none

    return check


def _watched(imported: list[str]) -> Callable[..., Any]:
    import importlib

    original = importlib.import_module

    def watch(name: str, package: str | None = None) -> Any:
        if name.split(".")[0] in ("evil", "subprocess", "os", "builtins", "pathlib"):
            imported.append(name)
        return original(name, package)

    return watch


def test_names_where_code_is_imported(many: Callable[[int, int], int], unmarked: Callable[[], bool]) -> None:
    """One spelling that is not thought of is enough for whoever sends a run folder."""
    trust.typed("py:mine:make")
    for name in names(many(100, 1000)):
        for enter in (
            trust.import_callable,
            load_source,
            lambda text: load_network(text, weights=False),
            lambda text: build(ModelSpec(text)),
        ):
            with pytest.raises((UserError, ValueError, OSError)):
                enter(name)
        assert unmarked(), repr(name)


def test_names_in_a_pipe(cli: Cli, many: Callable[[int, int], int], unmarked: Callable[[], bool]) -> None:
    """Whoever writes to the pipe would run code at its end."""
    commands = (["eval"], ["profile-flops"], ["distill"], ["add-res-student", "--arch", TINY], ["polish"], ["verify"])
    for number, name in enumerate(names(many(30, 1000))):
        command = commands[number % len(commands)]
        text = name + "\n" if number % 3 == 0 else json.dumps({"run": name})
        assert cli(command[0], "-", *command[1:], stdin=text).status in (1, 2), repr(name)
        assert unmarked(), repr(name)


@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_names_in_every_string_of_a_run(
    cli: Cli, copied: Callable[[str], Path], many: Callable[[int, int], int], unmarked: Callable[[], bool], name: str
) -> None:
    """A run folder from somebody else would take over the machine of who scores or goes on with it."""
    run = copied("gated")
    content = json.loads((run / name).read_text())
    places = list(leaves(content))
    spellings = list(names(1000))
    commands = (
        ["eval", run],
        ["add-res-student", run, "--arch", TINY, "--epochs", 1],
        ["profile-flops", run],
        ["gate-calibrate", run, "--max-drop", 1],
        ["polish", run, "--epochs", 1],
    )
    draw = random.Random(1)
    for number in range(many(10, 100)):
        place, spelling = (
            (places[number % len(places)], draw.choice(spellings)) if number else (places[0], spellings[0])
        )
        rewrite(run / name, replaced(content, place, spelling))
        cli(*commands[number % len(commands)])
        assert unmarked(), (place, spelling)


def test_names_in_the_journal_of_a_search(
    cli: Cli, copied: Callable[[str], Path], here: Path, many: Callable[[int, int], int], unmarked: Callable[[], bool]
) -> None:
    """The winner is trained by its name."""
    single = copied("single")
    search = ["add-res-student", single, "--search", "--max-macs", 1, "--trials", 2, "--epochs", 1, "--out", here / "s"]
    assert cli(*search).status == 0
    journal = here / "s" / "search" / "journal.log"
    whole = journal.read_text()
    specs = {row["user_attr"][key] for row in map(json.loads, whole.splitlines()) for key in ("winner", "spec")
             if key in row.get("user_attr", {})}  # fmt: skip
    assert specs
    for spelling in names(many(3, 20)):
        shutil.rmtree(here / "s")
        journal.parent.mkdir(parents=True)
        rows = [json.loads(line) for line in whole.splitlines()]
        for row in rows:
            row.pop("digest", None)
            for key in set(row.get("user_attr", {})) & {"winner", "spec"}:
                row["user_attr"][key] = spelling
        journal.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (here / "s" / "run.json").write_text(json.dumps({"command": "add-res-student", "status": "unfinished"}))
        assert cli(*search, "--resume").status != 0, repr(spelling)
        assert unmarked(), repr(spelling)
