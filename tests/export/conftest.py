"""Members are exported once for all tests: that takes seconds each."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cascades import Pair

collect_ignore_glob = [] if all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))) else ["test_*.py"]


@pytest.fixture(scope="session")
def three() -> Pair:
    from cascades import MEMBERS, make

    return make("residual_cascade", members=MEMBERS)


@pytest.fixture(scope="session")
def pair() -> Pair:
    from cascades import PAIR, make

    return make("student_assistant", **PAIR)
