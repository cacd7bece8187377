"""The composed graph: the same logits and exits as PyTorch, and members that are really not run."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cascades import CLASSES, SIZE, Pair, gate_at, run, session
from torch import Tensor

from kdcompress.export.compose import compose
from kdcompress.gating import MEASURES, Gate, Heads, learned

TOLERANCE = 1e-4  # of the largest logit
BATCHES = (0, 1, 5, 64)


def images(count: int = 64) -> Tensor:
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(1))


def check(made: Pair, batch: Tensor) -> np.ndarray:
    """Compare ONNX Runtime with PyTorch; the exits."""
    content = made.content()
    for count in BATCHES:
        with torch.no_grad():
            expected, stages = made.model.forward_gated(batch[:count])
        logits, exits = run(content, batch[:count])
        assert logits.shape == (count, CLASSES)
        assert np.array_equal(exits, stages.numpy())
        finite = expected.isfinite().numpy()
        assert np.array_equal(np.isnan(logits), expected.isnan().numpy())
        largest = np.abs(expected.numpy()[finite]).max(initial=1e-9)
        assert np.abs(logits - expected.numpy())[finite].max(initial=0) <= TOLERANCE * largest
    return exits


@pytest.mark.parametrize("nowhere", [(), (0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("measure", MEASURES)
def test_three_members_exit_as_in_pytorch(three: Pair, measure: str, nowhere: tuple[int, ...]) -> None:
    """A service answers otherwise than the network that was scored."""
    batch = images()
    exits = check(three.gated(gate_at(three.model, batch, measure, nowhere=nowhere)), batch)
    assert set(exits) == {0, 1, 2} - set(nowhere)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("count", [1, 2])
def test_fewer_members(three: Pair, count: int, measure: str) -> None:
    """A pair, or a cascade of one, is exported with exits that are not its own."""
    made, batch = three.shortened(count), images()
    check(made.gated(gate_at(made.model, batch, measure)), batch)


def test_a_learned_gate_exits_as_in_pytorch(three: Pair) -> None:
    """Heads would be applied in another order, or to other logits."""
    torch.manual_seed(0)
    mends, spoils = (tuple(tuple(torch.randn(4 * exits + 1).tolist()) for exits in (1, 2)) for _ in range(2))
    heads, batch = Heads(3, mends, spoils), images()
    with torch.no_grad():
        logits = three.model.forward_stages(batch)
    sure = [heads.value(logits[stage], *logits[:stage]).sort().values for stage in (0, 1)]
    middle = len(batch) // 2
    limits = [float(values[middle - 1 : middle + 1].mean()) for values in sure]
    exits = check(three.gated(Gate.by(learned(heads), limits)), batch)
    assert set(exits) == {0, 1, 2}


@pytest.mark.parametrize("measure", MEASURES)
def test_student_with_assistant(pair: Pair, measure: str) -> None:
    """The assistant is run where it need not be, or adds the bias of the classifier once more."""
    batch = images()
    assert set(check(pair.gated(gate_at(pair.model, batch, measure)), batch)) == {0, 1}


@pytest.mark.parametrize("measure", MEASURES)
def test_images_of_nan_run_every_member(three: Pair, measure: str) -> None:
    """A damaged image is taken for a sure one, and stops the others of its batch from being looked at."""
    batch = images()
    gate = gate_at(three.model, batch, measure)
    batch[3] = float("nan")
    batch[7, 0, 2, 2] = float("inf")
    exits = check(three.gated(gate), batch)
    assert exits[3] == exits[7] == 2


@pytest.mark.parametrize(("limit", "last"), [(0.0, 0), (1.0, 2)])
def test_everybody_and_nobody_stops(three: Pair, limit: float, last: int) -> None:
    """The graph fails where a sub-batch is empty, or is all of the batch."""
    assert set(check(three.gated(Gate("margin", (limit, limit))), images())) == {last}


def test_without_a_gate_every_member_runs(three: Pair) -> None:
    """``--full`` leaves the gate in."""
    made, batch = three.gated(None), images()
    logits, exits = run(made.content(), batch)
    with torch.no_grad():
        expected = made.model.forward_full(batch).numpy()
    assert np.abs(logits - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert set(exits) == {2}
    assert all(node.op_type != "If" for node in compose(made.cascade, SIZE).graph.node)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_file_is_valid_onnx(three: Pair, measure: str) -> None:
    """Other engines refuse the file."""
    made = three.gated(gate_at(three.model, images(), measure))
    model = onnx.load_from_string(made.content())
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert [each.name for each in model.graph.input] == ["images"]
    assert [each.name for each in model.graph.output] == ["logits", "exit_stage"]


def test_nothing_of_this_machine_is_in_the_file(three: Pair) -> None:
    """A file that is given away names the folders of whoever made it."""
    content = three.gated(None).content()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b"site-packages" not in content


def branches(graph: Any) -> list[Any]:
    """The then-branches, from the outermost."""
    found = [node for node in graph.node if node.op_type == "If"]
    inner = [attribute.g for node in found for attribute in node.attribute if attribute.name == "then_branch"]
    return [*inner, *(each for graph in inner for each in branches(graph))]


def test_weights_lie_where_they_are_used(three: Pair) -> None:
    """ONNX Runtime leaves weights of an outer graph in their layout: to skip then costs more than it saves."""
    made = three.gated(gate_at(three.model, images(), "confidence"))
    graph = compose(made.cascade, SIZE).graph
    for stage, each in enumerate([graph, *branches(graph)]):
        weights = [weight.name for weight in each.initializer if weight.name.startswith("stage")]
        assert weights
        assert all(name.startswith(f"stage{stage}/") for name in weights)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the blocked layout is of x86")
def test_convolutions_that_may_be_skipped_have_the_blocked_layout(three: Pair, tmp_path: Path) -> None:
    """A member behind the gate takes twice the time that it takes alone."""
    made = three.gated(gate_at(three.model, images(), "confidence"))
    session(made.content(), optimized_model_filepath=str(tmp_path / "optimized.onnx"), log_severity_level=3)
    outer = onnx.load(str(tmp_path / "optimized.onnx")).graph
    kinds = [node.domain for node in branches(outer)[0].node if node.op_type == "Conv"]
    assert kinds.count("com.microsoft.nchwc") >= len(kinds) - 1 > 0


def convolutions(made: Pair, batch: Tensor, folder: Path) -> dict[int, set[int]]:
    """Rows that the convolutions of each stage were run on, from ONNX Runtime's own profile."""
    runtime = session(made.content(), enable_profiling=True, profile_file_prefix=str(folder / "profile"))
    runtime.run(None, {"images": batch.numpy()})
    found: dict[int, set[int]] = {}
    for event in json.loads(Path(runtime.end_profiling()).read_text()):
        if event.get("args", {}).get("op_name", "").endswith("Conv") and event["name"].endswith("_kernel_time"):
            stage = next(int(part[5:]) for part in event["name"].split("/") if part.startswith("stage"))
            shape = next(iter(event["args"]["input_type_shape"][0].values()))
            found.setdefault(stage, set()).add(shape[0])
    return found


def test_members_run_on_the_images_that_go_on(three: Pair, tmp_path: Path) -> None:
    """Skipping is pretended: every member is computed, and its logits thrown away."""
    batch = images()
    made = three.gated(gate_at(three.model, batch, "confidence"))
    _, exits = run(made.content(), batch)
    reached = {stage: {int((exits >= stage).sum())} for stage in range(3)}
    assert convolutions(made, batch, tmp_path) == reached
    assert len(batch) > reached[1].pop() > reached[2].pop() > 0


def test_members_that_nobody_needs_are_not_run(three: Pair, tmp_path: Path) -> None:
    """As above, where the whole batch is sure."""
    assert convolutions(three.gated(Gate("confidence", (0.0, 0.0))), images(), tmp_path) == {0: {64}}


def test_openvino_gives_the_same_exits(three: Pair, tmp_path: Path) -> None:
    """The file works with one engine only."""
    openvino = pytest.importorskip("openvino")
    batch = images()
    for measure in MEASURES:
        made = three.gated(gate_at(three.model, batch, measure))
        (tmp_path / "made.onnx").write_bytes(made.content())
        core = openvino.Core()
        hints = {"INFERENCE_PRECISION_HINT": "f32"}
        model = core.compile_model(core.read_model(str(tmp_path / "made.onnx")), "CPU", hints)
        for count in BATCHES[1:]:
            found = model(batch[:count].numpy())
            logits, exits = run(made.content(), batch[:count])
            assert np.array_equal(found["exit_stage"], exits), measure
            assert np.abs(found["logits"] - logits).max() <= TOLERANCE * np.abs(logits).max()
