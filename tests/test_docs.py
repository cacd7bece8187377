"""The pages say what is so: their commands parse, their Python compiles, their links lead somewhere."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import kdcompress
from kdcompress import options
from kdcompress.cli import COMMANDS, _app
from kdcompress.option_set import Options

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")],
    key=lambda page: page.relative_to(ROOT),
)
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.M | re.S)
WITHOUT_A_COMMAND = {"COMMAND", "--help", "--version", "--install-completion", "--show-completion"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [found[3] for found in BLOCK.finditer(page.read_text()) if found[2] == language]


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text())


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each kdcompress that a page shows, in a block or in the text."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;>")
            lexer.wordchars += ",:=@%+"
            part: list[str] = []
            for word in [*lexer, "|"]:
                if set(word) <= set("|&;>"):
                    if "kdcompress" in part:
                        yield part[part.index("kdcompress") + 1 :]
                    part = []
                else:
                    part.append(word)
    for span in re.findall(r"`kdcompress ([^`]+)`", prose(page)):
        words = shlex.split(span.replace("[", "").replace("]", ""))
        if words[0] not in WITHOUT_A_COMMAND and "OPTIONS" not in words:
            yield words


def resolved(arguments: list[str]) -> Options:
    """The options of a command line, read and checked as they would be, and nothing done."""
    group = typer.main.get_command(_app(arguments))
    context = group.make_context("kdcompress", list(arguments))
    name, command, rest = group.resolve_command(context, arguments)  # type: ignore[attr-defined]
    values = dict(command.make_context(name, rest, parent=context).params)
    own = {field: values.pop(field) for field in options.ShellOptions.__dataclass_fields__}
    options.ShellOptions.resolve(own)
    for undone in [key for key in values if key.startswith("not_")]:
        values.pop(undone)
    return getattr(options, COMMANDS[name][1]).resolve(values)


@every_page
def test_commands_can_be_typed(page: Path) -> None:
    """A user copies a command from a page, and is told that there is no such option or choice."""
    for arguments in commands(page):
        assert arguments[0] in COMMANDS, arguments
        resolved(arguments)


def test_commands_are_found_and_refused() -> None:
    """The test above would pass for pages whose commands it does not see, or does not read."""
    assert sum(len(list(commands(page))) for page in PAGES) >= 50
    for wrong in ("distill --nonsense 1", "distill --method magic", "distill --epochs many", "eval a b"):
        with pytest.raises(Exception, match=r"nonsense|magic|many|extra argument"):
            resolved(wrong.split())


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_shell_blocks_are_shell() -> None:
    """A block of commands ends in a syntax error."""
    found = [block for page in PAGES for block in blocks(page, "sh")]
    done = subprocess.run(["sh", "-n"], input="\n".join(found), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in re.findall(r"\b(?:sh|python) ((?:examples|docs)/\S+)", "\n".join(found)):
        assert (ROOT / path).is_file(), path


@every_page
def test_python_can_be_run(page: Path) -> None:
    """A user copies an example, and meets a syntax error, an unknown function or an unknown option."""
    functions = {function: getattr(options, option_set) for function, option_set, _ in COMMANDS.values()}
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "kdcompress":
                assert node.attr in kdcompress.__all__, node.attr
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in functions:
                known = functions[node.func.attr].__dataclass_fields__
                assert {keyword.arg for keyword in node.keywords} <= known.keys(), ast.unparse(node)


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    """A reader follows a link into nowhere."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert linked.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.M):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return names


def test_every_page_is_in_the_index() -> None:
    """A page exists that no reader finds."""
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


@every_page
def test_no_half_of_a_merge(page: Path) -> None:
    """A reader meets two versions of a paragraph, and the marks of the merge that left them."""
    assert not re.search(r"^(<{7}|={7}|>{7})( |$)", page.read_text(), re.M)


@every_page
def test_no_path_of_a_machine(page: Path) -> None:
    """A reader meets a path that only one machine has."""
    assert not re.search(r"(^|[\s`'\"(=])/(root|home|work|tmp)/", page.read_text())


def test_the_front_page_is_short() -> None:
    """Someone who wants to decide within a minute has to read for ten."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_the_options_page_is_of_these_options() -> None:
    """docs/cli.md describes an older command line: run ``python docs/make_cli.py``."""
    made = runpy.run_path(str(ROOT / "docs" / "make_cli.py"), run_name="make_cli")
    assert made["PAGE"].read_text() == made["page"](), "run python docs/make_cli.py"


def test_the_picture_is_of_these_results() -> None:
    """The picture of the front page shows other results than those we keep: run front_picture.py."""
    script = runpy.run_path(str(ROOT / "examples" / "studies" / "front_picture.py"), run_name="front_picture")
    runs = json.loads((ROOT / "examples" / "results" / "reskd.json").read_text())["runs"]
    assert (ROOT / "docs" / "accuracy-over-macs.svg").read_text() == script["picture"](runs)
