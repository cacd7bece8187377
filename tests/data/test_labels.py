"""Labels and inputs of others' data sets: what is meant is taken, all else is one clear line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdcompress.data.labels import check_classes, check_inputs, whole_labels
from kdcompress.errors import UserError

pytestmark = pytest.mark.attack("labels and inputs that are none")


@pytest.mark.parametrize(
    "labels",
    [
        [0, 2, 1],
        [0.0, 2.0, 1.0],
        np.array([0, 2, 1], dtype=np.uint8),
        np.array([0, 2, 1], dtype=np.float16),
        torch.tensor([0, 2, 1]),
        torch.tensor([0.0, 2.0, 1.0], dtype=torch.bfloat16),
        [torch.tensor(0), torch.tensor(2), torch.tensor(1)],
        [torch.tensor([0]), np.array([2]), [1]],
        np.array([0, 2, 1], dtype=object),
    ],
)
def test_whole_numbers_of_any_kind_are_labels(labels: Any) -> None:
    """Else a data set that trained yesterday is refused."""
    found = whole_labels(labels)
    assert found.tolist() == [0, 2, 1]
    assert found.dtype == np.int64


def test_truth_values_are_two_classes() -> None:
    """Else a data set of yes and no has to be rewritten."""
    assert whole_labels([True, False]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 0.7], "image 1 is 0.7"),
        (np.array([0.7, 1.7]), "image 0 is 0.7"),
        ([0, float("nan")], "image 1 is nan"),
        ([0, float("inf")], "image 1 is inf"),
        (torch.tensor([0.0, float("nan")]), "image 1 is nan"),
        ([torch.tensor(0.5), torch.tensor(1)], "image 0 is 0.5"),
        (["cat", "dog"], "image 0 is 'cat'"),
        (["0", "1"], "image 0 is '0'"),
        ([0, "dog"], "image 1 is 'dog'"),
        ([0, None], "image 1 is None"),
        ([0, 1j], "image 1 is 1j"),
        ([0, 10**30], f"image 1 is {10**30}"),
        (np.array([2**64 - 1], dtype=np.uint64), "image 0 is"),
        ([[0, 1], [1, 0]], "image 0 is 2 values"),
        (torch.eye(3), "image 0 is 3 values"),
        ([0, [1, 0]], "image 1 is 2 values"),
        ([{}, {}], "image 0 is {}"),
    ],
)
def test_what_is_no_class_is_quoted(labels: Any, words: str) -> None:
    """0.7 and 1.7 would become 0 and 1 and train a wrong network; the others would end in a traceback."""
    with pytest.raises(UserError) as caught:
        whole_labels(labels)
    assert words in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        ([0, 10**9], None, "label 1000000000, but there are only 2 images"),
        ([0, 2**62], None, "there are only 2 images"),
        ([0, -1], None, "label -1"),
        ([0, 2], ["a", "b"], "2 classes, but an image has the label 2"),
        ([0, 1], range(10**7), "10000000 classes"),
    ],
)
def test_labels_are_counted_from_0(labels: list[int], classes: Any, words: str) -> None:
    """A class for each number up to 10^9 would ask for 64 GB."""
    with pytest.raises(UserError) as caught:
        check_classes(np.array(labels), None, classes)
    assert words in caught.value.problem


def test_classes_without_an_image_are_still_classes() -> None:
    """Else a subset of a data set, or one whose names are known, is refused."""
    assert check_classes(np.array([0, 0, 4, 4, 1]), np.array([2]), None) == 5
    assert check_classes(np.array([0, 1]), None, ["a"] * 100) == 100


@pytest.mark.parametrize(("value", "words"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_inputs_that_are_no_numbers_are_said_at_load(value: float, words: str) -> None:
    """Else the first loss is not finite, and --lr gets the blame."""
    inputs = torch.zeros(5, 3, 2)
    check_inputs(inputs)
    inputs[3, 1, 1] = inputs[4, 0, 0] = value
    with pytest.raises(UserError) as caught:
        check_inputs(inputs)
    assert "Item 3" in caught.value.problem
    assert words in caught.value.problem
    assert "2 of 5" in caught.value.problem
