"""Write docs/cli.md from the options, so that page and command line never drift apart::

python docs/make_cli.py
"""

from __future__ import annotations

import inspect
import typing
from pathlib import Path
from typing import Any

from kdcompress import options as sets
from kdcompress.cli import COMMANDS
from kdcompress.cli.params import with_options
from kdcompress.option_set import Options

PAGE = Path(__file__).parent / "cli.md"
INTRODUCTION = """# Command line

<!-- Written by docs/make_cli.py from the options; do not edit. -->

A command takes its input as an argument or from a pipe (`-`), prints its result, and, if it makes something, writes a
run folder (`--out`, by default a new one under `runs/`).

* **Output.** The result goes to standard output: one line of JSON into a pipe or with `--json`, a table on a terminal.
  Progress and errors go to standard error.
* **Exit status.** 0 done · 1 failed · 2 wrong usage · 130 interrupted, with the state saved for `--resume`.
  `KDCOMPRESS_DEBUG=1` shows tracebacks.
* **Where options come from.** Flags win over the environment (`KDCOMPRESS_EPOCHS=30`), which wins over a YAML or JSON
  file (`--config FILE`), which wins over the defaults. `--no-NAME` undoes a switch that environment or file have set.
* **One file for a pipeline.** Options at the top of the file hold for every command that knows them; those under the
  name of a command hold for that command:

  ```yaml
  epochs: 15
  distill:
    method: reskd
    student: resnet8_cifar,width=0.5
  ```

* **Shell completion.** `kdcompress --install-completion` installs it for your shell, `--show-completion` prints it:
  for commands, options, and values that are a choice or the name of a network.
"""


def page() -> str:
    """The whole page."""
    links = " · ".join(f"[`{name}`](#{name})" for name in COMMANDS)
    parts = [INTRODUCTION, links, ""]
    for name, (_, option_set, text) in COMMANDS.items():
        parts += _command(name, getattr(sets, option_set), text)
    parts += ["## Options of every command", "", *_table(next(iter(_panels(sets.ShellOptions).values())))]
    return "\n".join(parts)


def _command(name: str, option_set: type[Options], text: str) -> list[str]:
    told = [line for line in text.strip().splitlines() if line]
    examples = [line.removeprefix("Example: ") for line in told if line.startswith("Example: ")]
    panels = _panels(option_set)
    arguments = panels.pop("", [])
    usage = " ".join(["kdcompress", name, *(f"[{each.metavar}]" for each in arguments), "[OPTIONS]"])
    parts = [f"## {name}", "", *(line for line in told if not line.startswith("Example: ")), ""]
    parts += ["```sh", *examples, "```", "", f"`{usage}`", ""]
    parts += [line for each in arguments for line in (f"{each.metavar}: {_escaped(each.help)}", "")]
    for panel, rows in panels.items():
        parts += [f"**{panel}**", "", *_table(rows)]
    return parts


def _panels(option_set: type[Options]) -> dict[str, list[Any]]:
    """What Typer is told of the options, by the heading under which ``--help`` has them; arguments under none."""
    found: dict[str, list[Any]] = {}
    for parameter in inspect.signature(with_options(lambda _: 0, option_set)).parameters.values():
        told = typing.get_args(parameter.annotation)[1]
        if not told.hidden:
            found.setdefault(told.rich_help_panel or "", []).append(told)
    return found


def _table(rows: list[Any]) -> list[str]:
    flags = (", ".join([each.default, *each.param_decls]) for each in rows)  # Typer has the flag there
    names = (" ".join(filter(None, [flag, each.metavar])) for flag, each in zip(flags, rows, strict=True))
    lines = [f"| `{name}` | {_escaped(each.help)} |" for name, each in zip(names, rows, strict=True)]
    return ["| option | |", "| --- | --- |", *lines, ""]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("~", "\\~").replace("<", "\\<")


if __name__ == "__main__":
    PAGE.write_text(page())
