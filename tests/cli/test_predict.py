"""``kdcompress predict`` as a link of a pipeline."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from cli.conftest import Cli
from cli.forked import start
from cli.shell import shell
from kdcompress.cli import rows as printing

KEYS = ["path", "label", "index", "probability", "exit_stage", "top5"]


@pytest.fixture
def images(here: Path) -> Path:
    """Twenty small images in two folders below ``here``."""
    folder = here / "images"
    for number in range(20):
        file = folder / ("more" if number % 2 else "") / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 12 * number).save(file)
    return folder


def test_a_line_of_json_per_image(cli: Cli, runs: Path, images: Path) -> None:
    """A program downstream cannot read the rows, or finds something else among them."""
    done = cli("predict", runs / "gated", "images", "--batch-size", 3)
    assert done.status == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert len(rows) == 20
    assert [list(row) for row in rows] == [KEYS] * 20
    assert [row["path"] for row in rows] == [
        *(f"images/{n:02d}.png" for n in range(0, 20, 2)),
        *(f"images/more/{n:02d}.png" for n in range(1, 20, 2)),
    ]
    assert {row["exit_stage"] for row in rows} <= {0, 1}
    assert all(list(each) == ["label", "index", "probability"] for row in rows for each in row["top5"])
    assert "20 images classified" in done.err
    assert "exits by stage" in done.err


@pytest.mark.parametrize("run", ["teacher", "single", "cascade"])
def test_networks_without_a_gate_have_no_exit(run: str, cli: Cli, runs: Path, images: Path) -> None:
    """A network that runs as a whole looks as if it had stopped somewhere."""
    done = cli("predict", runs / run, "images/00.png", "--quiet")
    assert done.err == ""
    assert json.loads(done.out)["exit_stage"] is None


def test_every_reference_is_taken(cli: Cli, runs: Path, images: Path) -> None:
    """What can be evaluated cannot be used."""
    direct = cli("predict", runs / "single", "images").out
    piped = cli("predict", "-", "images", stdin=json.dumps({"run": str(runs / "single")}) + "\n").out
    local = cli("predict", f"local-dir:{runs / 'single'}", "images").out
    assert direct == piped == local
    arch = ("--arch", "resnet8_cifar,width=0.25,in_chans=1")
    bare = cli("predict", runs / "teacher" / "model.safetensors", "images", *arch)
    assert bare.status == 0, bare.err
    assert "names of the classes are not known" in bare.err
    assert len(bare.out.splitlines()) == 20


def test_paths_come_from_a_pipe(cli: Cli, runs: Path, images: Path) -> None:
    """``find`` cannot choose the images."""
    paths = [str(path) for path in sorted(images.rglob("*.png"))]
    for separator, flags in (("\n", ()), ("\0", ("-0",)), ("\0", ("--null",))):
        done = cli("predict", runs / "gated", "-", *flags, stdin=separator.join(paths))
        assert [json.loads(line)["path"] for line in done.out.splitlines()] == paths
    for table in ((), ("--csv", "classes.csv")):  # a table of its own does not change what is said of the input
        cli("predict", runs / "gated", "-", *table, stdin="\0".join(paths)).error("NUL", "-0", status=2)


def test_bad_inputs_are_named_and_the_status_says_so(cli: Cli, runs: Path, images: Path, here: Path) -> None:
    """A script goes on as if all images were classified."""
    (here / "empty").mkdir()
    (here / "cut.png").write_bytes((images / "00.png").read_bytes()[:44])
    bad = ("nowhere.png", "empty", "cut.png")
    done = cli("predict", runs / "gated", *bad, "images", "--quiet")
    assert done.status == 1
    assert len(done.out.splitlines()) == 20
    lines = done.err.splitlines()
    assert lines[:2] == ["Error: There is no file or folder nowhere.png.", "Error: The folder empty has no images."]
    assert lines[2].startswith("Error: Unreadable image cut.png: ")
    assert lines[3:] == ["3 of 23 inputs could not be read."]
    for each in bad:
        cli("predict", runs / "gated", each, "--quiet").error(each, status=1)


def test_mistakes_get_two_lines(cli: Cli, runs: Path, images: Path, here: Path) -> None:
    """A misspelt command ends in a traceback."""
    cli("predict", "nowhere/run", "images").error("nowhere/run", status=1)
    cli("predict", runs / "gated").error("No images", status=2)
    cli("predict", "-", "-").error("once", status=2)
    cli("predict", runs / "gated", "images", "--top-k", 0).error("--top-k", "at least 1", status=2)
    cli("predict", runs / "gated", "images", "-0").error("--null", status=2)
    (here / "there.csv").touch()
    cli("predict", runs / "gated", "images", "--csv", "there.csv").error("there.csv", "exists", status=2)


def test_a_table_for_people(cli: Cli, runs: Path, images: Path) -> None:
    """A terminal is filled with JSON, or paths are cut so that they cannot be copied."""
    done = cli("predict", runs / "gated", "images", "--no-json", "--quiet")
    header, *lines = done.out.splitlines()
    assert header.split() == ["label", "probability", "exit", "path"]
    assert len(lines) == 20
    assert lines[0].endswith("images/00.png")
    assert len({line.index("images/") for line in (*lines, header.replace("path", "images/"))}) == 1
    assert "exit" not in cli("predict", runs / "teacher", "images", "--no-json").out.splitlines()[0]


def test_names_of_files_cannot_steer_a_terminal(cli: Cli, runs: Path, here: Path) -> None:
    """A file from elsewhere recolours, or clears, the screen."""
    name = "a\x1b[2J\r.png"
    Image.new("L", (8, 8)).save(here / name)
    assert "\x1b" not in cli("predict", runs / "single", name, "--no-json").out
    assert json.loads(cli("predict", runs / "single", name).out)["path"] == name
    (here / "b\x1b[2J.png").touch()
    assert "\x1b" not in cli("predict", runs / "single", "b\x1b[2J.png").err


def test_rows_are_written_batch_by_batch(cli: Cli, runs: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come when all images are done, and are held in memory until then."""
    written: list[str] = []

    def counting(text: str, output: object) -> None:
        written.append(text)

    monkeypatch.setattr(printing, "_written", counting)
    assert cli("predict", runs / "single", "images", "--batch-size", 8, "--quiet").status == 0
    assert [number for number, text in enumerate(written) if not text] == [8, 17, 22], "standard output is not flushed"


def test_as_a_link_of_a_shell_pipeline(runs: Path, images: Path, here: Path) -> None:
    """``| head -1`` ends in a traceback; a full disk goes unnoticed; a table that was asked for is not finished."""
    predict = f"kdcompress predict {runs}/gated"
    script = f"""
        options="-0 --batch-size 1 --csv all.csv"
        find images images -name '*.png' -print0 | {predict} - $options 2>head.err | head -1 >head
        echo "head ${{PIPESTATUS[*]}}"
    """
    (here / "full.err").touch()
    full = start(["predict", f"{runs}/gated", "images"], here, Path("/dev/full"), here / "full.err")
    done = shell(script, here)
    full.join(120)
    assert full.exitcode == 1
    assert done.out.splitlines() == ["head 0 1 0"], done.err
    assert json.loads((here / "head").read_text())["path"].startswith("images/")
    assert "Error" not in (here / "head.err").read_text()
    assert "Traceback" not in (here / "head.err").read_text()
    with open(here / "all.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 40
    assert "No space left" in (here / "full.err").read_text()


def test_a_pipe_that_stays_open_does_not_keep_it(runs: Path, images: Path, here: Path) -> None:
    """Rows wait for paths that never come; or the command hangs, or crashes, when the reader of its rows has left."""
    paths, printed, err = (here / name for name in ("paths", "printed", "err"))
    os.mkfifo(paths)
    os.mkfifo(printed)
    err.touch()
    command = ["predict", str(runs / "gated"), "-", "--batch-size", "1", "--quiet"]
    process = start(command, here, printed, err, given=paths)
    with open(printed) as rows:
        writer = os.open(paths, os.O_WRONLY)
        os.write(writer, b"images/00.png\nimages/02.png\nimages/04.png\n")
        for number in (0, 2, 4):
            assert json.loads(rows.readline())["path"] == f"images/{number:02d}.png"
    os.write(writer, b"images/06.png\n")
    process.join(60)
    assert process.exitcode == 1
    assert err.read_text() == ""
    os.close(writer)
