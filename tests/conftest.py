"""Shared by all tests: one thread each, and a cache of their own."""

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import once
from kdcompress import trust
from kdcompress.engine.precision import Process, bf16_support

ATTACKS = pytest.StashKey[dict[str, dict[str, int]]]()


# files, or tests, that start processes or train for more than a moment
SLOW = (
    "attacks/",
    "api/test_agreement.py",
    "api/test_benchmark.py",
    "api/test_cascade.py",
    "api/test_compress.py",
    "api/test_export_command.py",
    "api/test_lwkd_command.py",
    "api/test_made_split.py",
    "api/test_manifest_commands.py",
    "api/test_numerics.py",
    "api/test_polish_command.py",
    "api/test_search",
    "api/test_targets_command.py",
    "api/test_methods.py",
    "api/test_pipeline_functions.py",
    "api/test_predict.py",
    "api/test_push.py",
    "api/test_report.py",
    "api/test_res_students.py",
    "api/test_resume.py",
    "api/test_rkd_assistant_command.py",
    "api/test_starting_weights.py",
    "api/test_teacher_inputs.py",
    "api/test_teacher_score.py",
    "api/test_unlabelled_command.py",
    "cli/test_adding_a_method.py",
    "cli/test_edge.py",
    "cli/test_errors.py",
    "cli/test_hosts.py",
    "cli/test_interrupt.py",
    "cli/test_pipeline.py",
    "cli/test_predict.py",
    "cli/test_report.py",
    "cli/test_shards.py",
    "cli/test_streams.py",
    "cli/test_summary.py",
    "cli/test_torchrun.py",
    "cli/test_trust.py",
    "engine/test_allocation.py",
    "export/",
    "engine/test_compiling.py",
    "engine/test_fit.py::test_narrow_networks_survive_two_threads",
    "engine/test_gradient_check.py",
    "engine/test_precision.py::test_the_chosen_precision_works_on_this_processor",
    "data/test_synth_digits.py::test_another_process_draws_the_same",
    "models/test_loading.py::test_after_import_kdcompress_timm_loads_everything",
    "models/test_loading.py::test_timm_alone_loads_a_student_of_its_own",
    "models/test_separate.py",
    "report/test_browser.py",
    "test_examples.py",
    "test_guarantee.py",
    "test_real_data.py",
    "test_timm_hook.py",
)


LONGEST = ("test_a_killed_process_is_restarted", "test_quickstart", "test_a_kill_costs", "test_phases_of_two_processes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(f"tests/{part}" in f"/{item.nodeid}" for part in SLOW):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    items.sort(key=lambda item: not any(part in item.nodeid for part in LONGEST))  # begun last, they would end alone


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--many", action="store_true", help="as many attacks as the table in docs/reliability.md counts")
    parser.addoption("--attacks", metavar="FILE", help="JSON of how many attacks of each kind were tried, and held")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Count attacks: those of a test that says how many it tries, else one."""
    report = yield
    mark = item.get_closest_marker("attack")
    if mark is not None and (report.when == "call" or report.failed):
        counts = item.config.stash.setdefault(ATTACKS, {}).setdefault(mark.args[0], {"tried": 0, "held": 0})
        number = dict(item.user_properties).get("attacks", 1)
        if not report.skipped:
            counts["tried"] += number
            counts["held"] += number if report.passed else 0
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if file := session.config.getoption("--attacks"):
        counts = {kind: found for kind, found in session.config.stash.get(ATTACKS, {}).items() if found["tried"]}
        Path(file).write_text(json.dumps(dict(sorted(counts.items())), indent=2) + "\n")


@pytest.fixture(autouse=True, scope="session")
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tiny networks run faster on one thread, and what tests try out must not be remembered for the user."""
    torch.set_num_threads(1)
    former = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if former is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = former


@pytest.fixture(autouse=True, scope="session")
def _once() -> Iterator[None]:
    """A third of the time went into the same counts, the same digits, and waiting for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        once.patched(patch)
        yield


@pytest.fixture(autouse=True)
def _process_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that runs in this process must not leave the next test the belief that it is alone in it."""
    monkeypatch.setattr(Process, "is_ours", False)


@pytest.fixture(autouse=True)
def _nothing_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that one test names must not be trusted in the next."""
    monkeypatch.setattr(trust, "_typed", set())


@pytest.fixture(scope="session")
def bf16(_alone: None) -> None:
    """Only where the processor has it; where oneDNN must be told to do without AMX, it is too late in this process."""
    if bf16_support().runs != "native":
        pytest.skip("bf16 does not run in this process")
