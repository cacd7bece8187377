"""Write the results table into README.md from the JSON that cifar10_pipeline.sh left::

    python examples/studies/readme_table.py OUT README.md

Everything between the two ``cifar10-table`` marks is made anew; nothing there is typed by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- cifar10-table: begin -->", "<!-- cifar10-table: end -->"

TARGETS = ("max_drop", "target_macs", "threshold")


def main(out: Path, readme: Path) -> None:
    teacher = _read(out / "eval-teacher.json")
    rows = [_row("teacher, ResNet-56", teacher, teacher, None)]
    full = _read(out / "eval-s0-r1.json")
    first, second = (member["architecture"] for member in full["members"])
    rows.append(_row(f"S0, `{first}`", _read(out / "eval-s0.json"), teacher, None))
    rows.append(_row(f"S0 + R1 `{second}`, all run", full, teacher, None))
    for path in sorted(out.glob("eval-gated-*.json")):
        result = _read(path)
        options = _read(Path(result["run"]) / "run.json")["options"]
        given = next(key for key in TARGETS if options.get(key) not in (None, []))
        target = f"--{given.replace('_', '-')} {_first(options[given])}"
        kept = result["speedup"] / result["macs_speedup"]
        rows.append(_row(f"**gated, `{target}`**", result, teacher, kept))
    record, res_record = _read(out / "s0" / "run.json"), _read(out / "s0-r1" / "run.json")
    versions, epochs = record["versions"], record["options"]["epochs"]
    lines = [
        BEGIN,
        "| CIFAR-10 test | top-1 | MACs per image | of the teacher | speed-up kept¹ |",
        "| --- | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        f"{teacher['n']:,} test images; S0 {epochs} epochs, R1 {res_record['options']['epochs']}, "
        f"one seed, last epoch; made by `EPOCHS={epochs} sh examples/cifar10_pipeline.sh DATA TEACHER OUT` on "
        f"{teacher['hardware']} "
        f"(torch {versions['torch']}, {record['result']['precision']}), table by `examples/studies/readme_table.py`. "
        "The images are the JPEG version of CIFAR-10, so all accuracies are a little below the published ones.",
        "",
        "¹ wall-clock speed-up of the gated cascade over the full one, divided by the one that their MACs promise.",
        END,
    ]
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    readme.write_text(before + "\n".join(lines) + rest.split(END)[1])


def _row(name: str, result: dict[str, Any], teacher: dict[str, Any], kept: float | None) -> str:
    macs = result.get("expected_macs", result.get("macs"))
    share = "–" if kept is None else f"{kept:.2f}"
    return f"| {name} | {result['top1']:.2f} % | {macs / 1e6:.1f} M | {100 * macs / teacher['macs']:.1f} % | {share} |"


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
