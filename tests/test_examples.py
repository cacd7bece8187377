"""The scripts under examples/ do what they say, as a user would run them."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kdcompress
from cli.conftest import Cli, cli, here  # noqa: F401  (fixtures)
from cli.forked import script

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
STUDIES, BENCHMARKS = EXAMPLES / "studies", EXAMPLES / "benchmarks"


def test_quickstart_keeps_its_promises(cli: Cli, here: Path) -> None:  # noqa: F811
    """The first command of the README fails, or the pipeline no longer gives an accurate cascade for little.

    tests/cli/test_pipeline.py has links of a shell.
    """
    text = (EXAMPLES / "quickstart.sh").read_text()
    assert text.count('"${EPOCHS:-15}"') == 3
    joined = text.replace('"${EPOCHS:-15}"', "5").replace("\\\n", " ")  # a third of the time, and nearly as accurate
    (pipeline,) = [line for line in joined.splitlines() if line.startswith("kdcompress ")]
    told = ""
    for link in pipeline.split("|"):
        program, *arguments = shlex.split(link)
        assert program == "kdcompress"
        done = cli(*arguments, stdin=told)
        assert done.status == 0, done.err
        told = done.out
    gated = json.loads(told)
    record = json.loads(Path(gated["run"], "run.json").read_text())
    top1 = kdcompress.evaluate(run=record["teacher"]["reference"], device="cpu").top1
    assert top1 >= 95
    assert gated["gated_top1"] >= top1 - 4
    assert gated["expected_macs_ratio"] < 0.25
    assert gated["expected_macs"] < gated["macs"]


def test_bench_training_measures_all_loops(tmp_path: Path) -> None:
    """The script that shows what the loop costs no longer runs."""
    small = ["resnet8_cifar:resnet8_cifar,width=0.25", "--batch-size", "16"]
    few = ["--steps", "3", "--rounds", "2", "--side", "16"]
    result = script(BENCHMARKS / "bench_training.py", [*small, *few], tmp_path).result
    assert result["ratios"].keys() == {"plain_loop", "live", "kept", "res_student"}
    assert all(ratio > 0 for ratio in result["ratios"].values())
    speeds = result["images_per_second"]
    assert speeds["data"] > speeds["bare"] > 0


def test_bench_inference_measures_the_gate(tmp_path: Path) -> None:
    """The script that shows that the gate keeps its promise no longer runs."""
    small = ["--teacher", "resnet20_cifar", "--images", "64", "--batch-sizes", "1", "32", "--rounds", "2"]
    result = script(BENCHMARKS / "bench_inference.py", small, tmp_path).result
    assert 0 < result["macs"]["gated"] < result["macs"]["full"]
    assert result["batch_sizes"].keys() == {"1", "32"}
    assert all(found["kept"]["gated"] > 0 for found in result["batch_sizes"].values())


def test_readme_table_is_made_from_the_runs(tmp_path: Path) -> None:
    """The table in the README could drift from the JSON that it claims to show."""
    sys.path.insert(0, str(STUDIES))
    try:
        import readme_table
    finally:
        sys.path.remove(str(STUDIES))
    teacher = {"top1": 90.28, "macs": 100_000_000, "n": 10_000, "hardware": "a processor"}
    results = {
        "eval-teacher": teacher,
        "eval-s0": {"top1": 86.0, "macs": 20_000_000},
        "eval-s0-r1": {
            "top1": 87.5,
            "macs": 30_000_000,
            "members": [{"architecture": "small"}, {"architecture": "smaller,width=0.5"}],
        },
        "eval-gated-0.5": {
            "top1": 87.1,
            "macs": 30_000_000,
            "expected_macs": 23.4e6,
            "speedup": 1.2,
            "macs_speedup": 1.25,
            "run": str(tmp_path / "gated"),
        },
    }
    for name, result in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    record = {"versions": {"torch": "2"}, "options": {"epochs": 3}, "seed": 0, "result": {"precision": "fp32"}}
    record["options"]["max_drop"] = 0.5
    for name in ("s0", "s0-r1", "gated"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{readme_table.BEGIN}\nold\n{readme_table.END}\nafter\n")
    readme_table.main(tmp_path, readme)
    text = readme.read_text()
    assert "| **gated, `--max-drop 0.5`** | 87.10 % | 23.4 M | 23.4 % | 0.96 |" in text
    assert "| S0 + R1 `smaller,width=0.5`, all run | 87.50 % | 30.0 M | 30.0 % | – |" in text
    assert "S0 3 epochs, R1 3," in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_name_real_options(path: Path, tmp_path: Path) -> None:
    """A script uses an option that the command line no longer has."""
    from kdcompress import options
    from kdcompress.cli import COMMANDS
    from kdcompress.option_set import flag

    subprocess.run(["sh", "-n", str(path)], check=True)
    text = path.read_text().replace("\\\n", " ")
    seen = 0
    for link in text.replace("|", "\n").splitlines():
        words = link.split()
        if words[:1] == ["kdcompress"]:
            known = {flag(name) for name in getattr(options, COMMANDS[words[1]][1]).__dataclass_fields__}
            assert {word for word in words if word.startswith("--")} <= known, link
            seen += 1
        elif words[:1] == ["python"]:
            told = script(Path(words[1].strip('"').replace("$here", str(EXAMPLES))), ["--help"], tmp_path).out
            assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[a-z0-9-]+", told)), link
            seen += 1
    assert seen >= 1


QUICK = """
import sys
from kdcompress.api.recipes import light_teacher
from kdcompress.cli import run

light_teacher.MOST_EPOCHS = 2
light_teacher._data = lambda classes: f"synth-digits:{classes},n=2000"
"""


@pytest.mark.parametrize(("name", "chance", "epochs"), [("lwkd_text", 100 / 7, 4), ("lwkd_table", 100 / 3, 15)])
def test_other_data_than_images(name: str, chance: float, epochs: int, tmp_path: Path) -> None:
    """The examples of text and tables no longer run, or learn nothing."""
    out = str(tmp_path / "run")
    specs = ["--data", f"py:{name}:data", "--student", f"py:{name}:model", "--epochs", str(epochs)]
    arguments = ["distill", "--method", "lwkd", *specs, "--out", out, "--device", "cpu"]
    scored = ["eval", out, "--trust-code", "--device", "cpu"]
    (tmp_path / "quick.py").write_text(f"{QUICK}sys.exit(run({arguments!r}) or run({scored!r}))")
    done = script(tmp_path / "quick.py", [], tmp_path, EXAMPLES, XDG_CACHE_HOME=str(tmp_path))
    assert done.status == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["top1"] > 2 * chance


def test_rkd_cost_counts_twice(tmp_path: Path) -> None:
    """The table that shows that separation is free could not be made again."""
    table = tmp_path / "README.md"
    table.write_text("before\n<!-- rkd-cost: begin -->\nold\n<!-- rkd-cost: end -->\nafter\n")
    done = script(STUDIES / "rkd_cost.py", ["resnet8_cifar,width=0.5", "--table", str(table)], tmp_path)
    assert done.status == 0, done.err
    head, _, row, *_ = [line for line in table.read_text().splitlines() if line.startswith("|")]
    cells = dict(zip(head.split("|"), row.split("|"), strict=True))
    assert 0.97 <= float(cells[" of the undivided "]) <= 1
    assert 0.95 <= float(cells[" by torch's count "]) <= 1
    assert "old" not in table.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory that processes share")
def test_bench_memory_measures_two_sizes(tmp_path: Path) -> None:
    """The script that shows that streaming needs no more memory for more images no longer runs."""
    small = ["--images", "100", "1000", "--steps", "2", "--side", "32"]
    done = script(BENCHMARKS / "bench_memory.py", small, tmp_path)
    assert done.status == 0, done.err
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [row["images"] for row in found] == [100, 1000]
    assert all(row["first_mib"] > 0 and row["targets_mib"] > 0 for row in found)
