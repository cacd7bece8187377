"""Try all attacks, and write the table of docs/reliability.md::

    python examples/benchmarks/attacks.py            # some 20 minutes on two cores
    python examples/benchmarks/attacks.py --table    # the page alone, from examples/results/

An attack is a test that is marked so; tests that try one thing in many ways say how many (``many``). The page's other
table is that of examples/benchmarks/bench_threads.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "examples" / "results", ROOT / "docs" / "reliability.md"


def attacks_table(found: dict[str, dict[str, int]]) -> list[str]:
    rows = sorted(found.items())
    rows.append(("**all**", {key: sum(row[key] for row in found.values()) for key in ("tried", "held")}))
    lines = ["| attack | tried | held | |", "| --- | ---: | ---: | ---: |"]
    for kind, row in rows:
        lines.append(f"| {kind} | {row['tried']:,} | {row['held']:,} | {100 * row['held'] / row['tried']:.4g} % |")
    return lines


def threads_table(found: dict[str, Any]) -> list[str]:
    columns = list(next(iter(found["table"].values())))
    lines = [f"| threads | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for name, row in found["table"].items():
        lines.append(f"| {name} | {' | '.join(f'{row[column]:,}' for column in columns)} |")
    return lines


def page(text: str, results: Path) -> str:
    """The page with its tables made anew, as far as there are results."""
    for name, table in (("attacks", attacks_table), ("threads", threads_table)):
        if (file := results / f"{name}.json").is_file():
            begin, end = (f"<!-- {name}-table: {mark} -->" for mark in ("begin", "end"))
            before, rest = text.split(begin)
            lines = [begin, *table(json.loads(file.read_text())), end]
            text = before + "\n".join(lines) + rest.split(end)[1]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only write the page")
    parser.add_argument("tests", nargs="*", help="only these files, whose kinds of attacks are counted anew")
    options = parser.parse_args()
    if not options.table:
        out = RESULTS / "attacks.json"
        before = json.loads(out.read_text()) if options.tests else {}
        tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-m", "attack", *options.tests]
        subprocess.run([*tests, "--many", "--attacks", str(out)], cwd=ROOT, check=False)
        out.write_text(json.dumps({**before, **json.loads(out.read_text())}, indent=2, sort_keys=True) + "\n")
    PAGE.write_text(page(PAGE.read_text(), RESULTS))


if __name__ == "__main__":
    main()
