"""What comes from outside and is not what it should be: one line each, whatever is wrong with it."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import kdcompress.api
from cli.conftest import Cli
from cli.shell import TINY, photos
from kdcompress.api.recipes import light_teacher
from kdcompress.errors import UserError
from kdcompress.options.training import MOST_EPOCHS
from kdcompress.runs import RunFolder

ONCE = ("--model", TINY, "--epochs", "1")


pytestmark = pytest.mark.attack("invalid input, data, paths and options")


def copied(runs: Path, name: str, here: Path) -> Path:
    """A run that the test may spoil."""
    return Path(shutil.copytree(runs / name, here / name))


def change(file: Path, path: str, value: Any) -> None:
    """Set one value of a JSON file; the path has dots between its keys."""
    content = json.loads(file.read_text())
    *parents, key = path.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    place[key] = value
    file.write_text(json.dumps(content))
    # as whoever altered it on purpose would do
    record = json.loads((file.parent / "run.json").read_text())
    rest = {key: part for key, part in record.items() if key not in ("digest", "digests")}
    (file.parent / "run.json").write_text(json.dumps(rest))


# --- standard input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        (bytes(range(256)), "UTF-8"),
        ('{"run": "x"}'.encode("utf-16"), "UTF-8"),
        (b'{"run": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"run": "x", "top1": NaN}', "NaN"),
        (b'{"run": "a\\u0000b"}', "run"),
        (b'{"run": "' + b"x" * 5000 + b'"}', "run"),
        (b'{"run": "' + b"x" * 300 + b'"}', "xxx"),
        (b'{"run": ["a"]}', "run"),
        (b"x" * 300, "xxx"),
        (b"a\0b", "neither JSON nor a path"),
    ],
    ids=["binary", "utf-16", "deep", "nan", "nul", "endless", "long", "list", "long path", "nul path"],
)
def test_standard_input_that_is_not_a_result(stdin: bytes, words: str, cli: Cli, here: Path) -> None:
    """Else a slip in a pipeline ends in a traceback."""
    cli("eval", "-", stdin=stdin).error(words)


def test_standard_input_without_end(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else ``yes | kdcompress eval -`` takes all the memory there is."""

    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            buffer[:] = b"y" * len(buffer)
            return len(buffer)

    monkeypatch.setattr("cli.conftest.Stdin", lambda _: io.TextIOWrapper(io.BufferedReader(Endless())))
    cli("eval", "-").error("more than 16 MiB")


def test_a_result_after_a_log_with_a_mark_of_its_encoding(cli: Cli, runs: Path) -> None:
    """Else what a shell of another system pipes is refused."""
    line = json.dumps({"run": str(runs / "teacher")})
    stdin = f"\ufefflog: résumé\n{line}\n".encode()
    assert cli("profile-flops", "-", stdin=stdin).result["run"] == str(runs / "teacher")


# --- run folders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file", "path", "value", "words"),
    [
        ("teacher", "config.json", "label_names", list(range(10)), "label_names"),
        ("teacher", "config.json", "label_names", ["a"], "label_names"),
        ("teacher", "config.json", "pretrained_cfg.std", [float("nan")], "NaN"),
        ("teacher", "config.json", "pretrained_cfg.std", [0], "std"),
        ("teacher", "config.json", "pretrained_cfg.mean", [0.5] * 7, "mean"),
        ("teacher", "config.json", "num_classes", 10**9, "num_classes"),
        ("teacher", "config.json", "model_args", {"width": [[]]}, "cannot be made"),
        ("gated", "config.json", "model_args.gate.thresholds", [0.3, 0.3, 0.3], "3 thresholds for 2 stages"),
        ("gated", "config.json", "model_args.gate", {"measure": "confidence"}, "is not a gate"),
        ("gated", "config.json", "model_args.gate.thresholds", ["low"], "gate"),
        ("gated", "config.json", "model_args.members", [3], "cannot be made"),
        ("teacher", "run.json", "options", ["digits"], "options"),
        ("teacher", "run.json", "options.data", {"spec": "digits"}, "options.data"),
        ("single", "run.json", "teacher.macs", "few", "teacher.macs"),
    ],
)
def test_malformed_run_folders(
    name: str, file: str, path: str, value: Any, words: str, cli: Cli, here: Path, runs: Path
) -> None:
    """Else a folder that was edited by hand ends in a traceback, or scores nonsense."""
    run = copied(runs, name, here)
    change(run / file, path, value)
    cli("eval", run, "--quiet").error(words)


def test_a_teacher_without_macs_on_record(cli: Cli, here: Path, runs: Path) -> None:
    """Else a cascade of a teacher that costs nobody knows what ends in a traceback."""
    run = copied(runs, "gated", here)
    change(run / "run.json", "teacher", {"reference": "somewhere"})
    assert "expected_macs_ratio" not in cli("eval", run).result
    cli("gate-calibrate", run, "--target-macs", "0.5").error("teacher's MACs", "--max-drop")


def test_a_finished_run_whose_result_was_altered(cli: Cli, here: Path, runs: Path) -> None:
    """Else --resume gives out whatever somebody wrote there."""
    for value in ({"top1": 100.0}, {}, None):
        run = copied(runs, "gated", here)
        change(run / "run.json", "result", value)
        done = cli("gate-calibrate", runs / "cascade", "--threshold", 0.3, "--out", run, "--resume")
        done.error("result", status=1)
        shutil.rmtree(run)


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.int64, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(kind: torch.dtype, cli: Cli, here: Path, runs: Path) -> None:
    """Else the stored integers are taken for the weights, and a network of noise is scored."""
    state = load_file(runs / "teacher" / "model.safetensors")
    state["fc.weight"] = state["fc.weight"].to(kind)
    save_file(state, here / "quantized.safetensors")
    name = str(kind).removeprefix("torch.")
    cli("eval", "quantized.safetensors", "--arch", TINY, "--data", "digits").error("fc.weight", name, "float32")


def test_a_loss_that_is_not_finite_is_null(cli: Cli, here: Path, runs: Path) -> None:
    """Else the line on standard output is no JSON, or none is printed after all the work."""
    state = load_file(runs / "teacher" / "model.safetensors")
    state["fc.weight"][3] = 3e38
    save_file(state, here / "wild.safetensors")
    done = cli("eval", "wild.safetensors", "--arch", TINY, "--data", "digits")
    assert done.result["loss"] is None
    assert "Notice: loss is " in done.err
    state["fc.weight"][3] = float("inf")
    save_file(state, here / "infinite.safetensors")
    cli("eval", "infinite.safetensors", "--arch", TINY, "--data", "digits").error("fc.weight holds infinity")


# --- data ---------------------------------------------------------------------------------------------------------

MODULE = """
import numpy as np, torch
from PIL import Image
def images(*labels):
    return [(Image.new("L", (8, 8), 9 * n), label) for n, label in enumerate(labels)]
def floats(value):
    inputs = torch.randn(8, 1, 8, 8)
    inputs[3, 0, 1, 1] = value
    return [(one, n % 2) for n, one in enumerate(inputs)]
class Sized(list):
    classes = 3
def make():
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return images(0.7, 1.7), None", "label of image 0 is 0.7"),
        ("return images(0, float('nan')), None", "label of image 1 is nan"),
        ("return images('cat', 1), None", "label of image 1 is 1, but the first training label is text"),
        ("return images('cat', 'dog'), images(0, 1)", "image 0 of the test split is 0, but the first training"),
        ("return images(0, 1), images('cat', 'dog')", "image 0 of the test split is 'cat', but the first training"),
        ("return images([0.2, 0.8], [1, 0]), None", "argmax"),
        ("return images(0, 10 ** 9), None", "label of image 1 is 1000000000"),
        ("return images(0, -1), None", "label of image 1 of the training split is -1"),
        ("return images(0, 1), images(0, 1.5)", "label of image 1 of the test split is 1.5"),
        ("return floats(float('nan')), None", "Item 3 of the data holds NaN"),
        ("return floats(float('inf')), None", "Item 3 of the data holds a number that is infinite"),
        ("return [1, 2, 3], None", "Item 0 of the data set is of type int, not (image, label)"),
        ("return Sized(images(0, 1)), None", "gives no data"),
        ("raise RuntimeError('the disk\\nis away')", "RuntimeError: the disk"),
        ("return 1 / 0", "ZeroDivisionError"),
        ("return", "returned NoneType"),
    ],
)
def test_invalid_python_data(body: str, words: str, cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a wrong network is trained without a word, 64 GB are asked for, or --lr gets the blame for NaN."""
    (here / "edge_data.py").write_text(f"{MODULE}    {body}\n")
    monkeypatch.delitem(sys.modules, "edge_data", raising=False)
    done = cli("data", "py:edge_data:make")
    assert (done.status, done.out) == (1, "")
    assert len(done.err.splitlines()) == 2, done.err
    assert words in done.err


def test_a_module_that_cannot_be_imported(cli: Cli, here: Path) -> None:
    """Else a slip in the user's own file looks like one of ours."""
    (here / "broken_edge.py").write_text("def make(:\n")
    cli("data", "py:broken_edge:make").error("py:broken_edge:make", "cannot be imported")


def test_what_python_data_print_is_not_the_result(cli: Cli, here: Path) -> None:
    """Else the next command of the pipeline reads a greeting in place of a run."""
    (here / "greeting.py").write_text(f"{MODULE}    print('hello')\n    return images(0, 0, 1, 1), None\n")
    done = cli("data", "py:greeting:make")
    assert done.result["num_classes"] == 2
    assert "hello" in done.err


def test_class_folders_whose_names_are_no_utf8(cli: Cli, here: Path) -> None:
    """Else photos from an old disk cannot be used at all."""
    root = photos(here / "photos")
    for split in ("train", "test"):
        os.rename(root / split / "cat", os.path.join(os.fsencode(root / split), b"caf\xe9"))
    done = cli("train-teacher", *ONCE, "--data", root, "--out", "run")
    assert done.status == 0, done.err
    assert cli("eval", "run").result["n"] == 12
    assert cli("data", root).result["class_names"] == ["caf\udce9", "dog"]


# --- paths and options --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "gate"])
@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("x" * 256, "too long"),
        ("ä" * 128, "too long"),
        ("x/" * 2500, "too long"),
        ("link", "broken link"),
        ("loop", "loop"),
        ("loop/run", "loop/run"),
        ("file/run", "file/run"),
        (" ", "empty"),
    ],
)
def test_out_that_is_impossible(command: str, out: str, words: str, cli: Cli, here: Path, runs: Path) -> None:
    """Else a training of a night ends in a traceback, or the message names an error number."""
    (here / "file").touch()
    (here / "link").symlink_to("nowhere")
    (here / "loop").symlink_to("loop")
    before = sorted(here.iterdir())
    start = ["train-teacher", *ONCE] if command == "train" else ["gate-calibrate", runs / "cascade", "--max-drop", 1]
    cli(*start, "--out", out).error("--out", words)
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    "option",
    [
        ("--epochs", 10**12),
        ("--epochs", MOST_EPOCHS + 1),
        ("--epochs", "9" * 5000),
        ("--epochs", "1e400"),
        ("--batch-size", 10**12),
        ("--grad-accum", 10**12),
        ("--workers", 10**6),
        ("--mixup", "1e300"),
        ("--decay-epochs", "1e-300"),
        ("--lr", "1e400"),
        ("--data", "x" * 5000),
        ("--data-dir", "x" * 256),
        ("--model", "x" * 5000),
        ("--input-size", 10**9),
    ],
)
def test_absurd_options(option: tuple[str, object], cli: Cli, here: Path) -> None:
    """Else they end in a number of bytes that could not be had, or in years."""
    line = cli("train-teacher", *option).error(option[0].strip("-").split("-")[0], status=2)
    assert len(line) < 300


@pytest.mark.parametrize("data", ["y" * 300, "torch/" + "y" * 300, "a/" * 300])
def test_long_names_are_not_there(data: str, cli: Cli, here: Path) -> None:
    """Else a name that no file system takes ends in an error number."""
    cli("data", data).error("yyy" if "y" in data else "a/a/")
    cli("eval", data).error("yyy" if "y" in data else "a/a/")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe\x00", "wrong.yaml"),
        (b"a: " + b"[" * 5000, "wrong.yaml"),
        (b"x" * (2**20 + 1), "larger than"),
        (b'out: "a\\0b"', "NUL"),
        (b"epochs: [1, 2]", "--epochs takes a whole number, not a list"),
        (b"opt: {sgd: 3}", "--opt takes text, not a dict"),
        (b"data: nowhere", "'nowhere'"),
        (b"data: [digits]", "--data takes text, not a list"),
        (b"epochs: .nan", "--epochs takes a whole number, not nan"),
        (b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
            b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % ((n + 1, n + 1) + (n,) * 9) for n in range(97, 107)
        ) + b"data: *k\n", "Unknown option"),
        (b"b: &b [[x]]\ndata: *b\n", "'b'"),
    ],
    ids=["binary", "deep", "large", "nul", "list", "dict", "data", "data list", "nan", "laughs", "key"],
)  # fmt: skip
def test_invalid_config_files(content: bytes, words: str, cli: Cli, here: Path) -> None:
    """Else a wrong file ends in a traceback, or takes all the memory."""
    (here / "wrong.yaml").write_bytes(content)
    cli("train-teacher", "--model", TINY, "--config", "wrong.yaml").error(words, status=2)
    cli("train-teacher", "--config", here).error("cannot be read", status=2)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_a_launcher_with_an_invalid_rank(name: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a variable that a batch system left behind loses the result at the very end."""
    monkeypatch.setenv(name, "zero")
    cli("train-teacher", *ONCE).error(name, "'zero'", status=2)


def test_quoted_input_cannot_control_the_terminal(cli: Cli) -> None:
    """Else the name of a file can rewrite what the user sees."""
    assert "\x1b" not in cli("eval", "evil\x1b[2Jname").err


# --- the last resort ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("lost"), "Unexpected error (KeyError: 'lost')"),
        (ValueError("one\ntwo"), "(ValueError: one)"),
        (MemoryError(), "Out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "Out of memory"),
        (OSError(errno.EIO, "Input/output error", "/data/disk"), "/data/disk: Input/output error"),
        (RecursionError("maximum recursion depth"), "RecursionError"),
    ],
)
def test_unexpected_errors_are_one_line(
    error: Exception, words: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a user faces a traceback of thirty files, of which none is theirs."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(kdcompress.api, "describe_data", fail)
    done = cli("data", "digits")
    assert done.status == 1
    assert done.err.splitlines() == [
        f"Error: {done.err.splitlines()[0][7:]}",
        "KDCOMPRESS_DEBUG=1 shows where it happened.",
    ]
    assert words in done.err
    monkeypatch.setenv("KDCOMPRESS_DEBUG", "1")
    with pytest.raises(type(error)):
        cli("data", "digits")


def test_a_broken_pipe_between_processes_is_reported(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a worker that the system has killed ends a training without a word."""

    def fail(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(kdcompress.api, "describe_data", fail)
    cli("data", "digits").error("has ended", "--workers", status=1)


# --- disks --------------------------------------------------------------------------------------------------------


def test_a_full_cache_costs_no_result(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else ``lwkd`` ends for want of room for what could be made anew."""
    real_replace = os.replace

    def replace(source: Any, target: Any) -> None:
        if str(here / "cache") in str(target) and str(target).endswith("checkpoint.pt"):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real_replace(source, target)

    monkeypatch.setattr("kdcompress.runs.os.replace", replace)
    monkeypatch.setattr(light_teacher, "MOST_EPOCHS", 1)
    monkeypatch.setattr(light_teacher, "_data", lambda classes: f"synth-digits:{classes},n=2000")
    arguments = ["distill", "--method", "lwkd", "--student", TINY, "--epochs", 1, "--bank-size", 4]
    done = cli(*arguments, "--cache-dir", here / "cache")
    assert done.status == 0, done.err
    assert "cannot be cached" in done.err
    assert "No space left" in done.err
    assert not list((here / "cache").rglob("*.safetensors"))


def test_a_disk_that_turns_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the message that names the file is lost for one of tidying up."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(UserError, match="could not be written: Read-only") as caught:
        RunFolder(tmp_path).write_json("run.json", {})
    assert "--out" in caught.value.remedy


def test_a_file_that_is_not_a_checkpoint(cli: Cli, here: Path, runs: Path) -> None:
    """Else --resume with a file of another program ends in a traceback."""
    run = copied(runs, "teacher", here)
    change(run / "run.json", "status", "unfinished")
    (run / "model.safetensors").unlink()
    for content in ({"version": 1}, [1, 2], {"phase": "last"}):
        torch.save(content, run / "checkpoint.pt")
        cli("train-teacher", *ONCE, "--out", run, "--resume").error("checkpoint.pt", "without --resume", status=1)


def test_standard_output_that_fails(cli: Cli, here: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a result is lost, though the run is finished and on the disk."""
    command = ["gate-calibrate", runs / "cascade", "--threshold", "0.5"]
    for number, arguments in enumerate(
        [[*command, "--json"], [*command, "--no-json"], ["data", "digits"], ["--version"]]
    ):
        with open("/dev/full", "w") as full:
            out = ["--out", here / f"run{number}"] if arguments[0] == command[0] else []
            monkeypatch.setattr(sys, "stdout", full)
            done = cli(*arguments, *out)
            monkeypatch.undo()
        assert done.status == 1
        if out:
            assert done.err.splitlines()[-1].endswith(f"its result is in {out[1]}/run.json.")
            assert json.loads((here / f"run{number}" / "run.json").read_text())["status"] == "finished"
        else:
            assert "No space left" in done.err
