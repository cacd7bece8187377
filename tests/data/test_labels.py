"""Labels and inputs of others' data sets: what is meant is taken, all else is one clear line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdcompress.data.labels import check_classes, check_inputs, decode
from kdcompress.errors import UserError

pytestmark = pytest.mark.attack("invalid labels and inputs of a data set")


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
    found = decode(labels, None, None).train
    assert found.tolist() == [0, 2, 1]
    assert found.dtype == np.int64


def test_truth_values_are_two_classes() -> None:
    """Else a data set of yes and no has to be rewritten."""
    assert decode([True, False], None, None).train.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 0.7], "image 1 is 0.7"),
        (np.array([0.7, 1.7]), "image 0 is 0.7"),
        ([0, float("nan")], "image 1 is nan"),
        ([0, float("inf")], "image 1 is inf"),
        (torch.tensor([0.0, float("nan")]), "image 1 is nan"),
        ([torch.tensor(0.5), torch.tensor(1)], "image 0 is 0.5"),
        ([0, "dog"], "image 1 is 'dog'"),
        (["dog", 0], "image 1 is 0"),
        ([0, None], "image 1 is None"),
        ([0, 1j], "image 1 is 1j"),
        ([0, 10**30], f"image 1 is {10**30}"),
        (np.array([2**64 - 1], dtype=np.uint64), "image 0 is"),
        ([[0, 1], [1, 1]], "image 1 is the vector (1, 1), which is not one-hot"),
        (torch.tensor([[0.1, 0.9], [1, 0]]), "image 0 is the vector (0.1, 0.9), which is not one-hot"),
        (torch.zeros(2, 3), "image 0 is the vector (0, 0, 0)"),
        (np.full((2, 2), np.nan), "image 0 is the vector (nan, nan)"),
        ([[0, 1], [1, 0, 0]], "image 0 is 2 values"),
        ([0, [1, 0]], "image 1 is 2 values"),
        ([{}, {}], "image 0 is {}"),
    ],
)
def test_what_is_no_class_is_quoted(labels: Any, words: str) -> None:
    """0.7 and 1.7 would become 0 and 1 and train a wrong network; the others would end in a traceback."""
    with pytest.raises(UserError) as caught:
        decode(labels, None, None)
    assert words in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        ([0, 10**9], None, "image 1 is 1000000000, but there are only 2 images"),
        ([0, 2**62], None, "there are only 2 images"),
        ([0, -1], None, "image 1 of the training split is -1"),
        ([0, 2], ["a", "b"], "image 1 of the training split is 2, but the data have 2 classes"),
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


@pytest.mark.parametrize(
    "labels",
    [
        torch.eye(3)[[0, 2, 1]],
        torch.eye(3, dtype=torch.long)[[0, 2, 1]],
        np.eye(3, dtype=bool)[[0, 2, 1]],
        [torch.eye(3)[0], torch.eye(3)[2], torch.eye(3)[1]],
        [torch.eye(3, dtype=torch.bfloat16)[row] for row in (0, 2, 1)],
        [[1, 0, 0], [0, 0, 1], [0, 1, 0]],
    ],
)
def test_one_hot_labels_are_taken(labels: Any) -> None:
    """A data set made for another loss has to be rewritten."""
    assert decode(labels, None, None).train.tolist() == [0, 2, 1]


def test_one_hot_vectors_say_how_many_classes_there_are() -> None:
    """A class without an image in a small subset would be missing in the network."""
    assert decode(torch.eye(5)[[0, 1]], torch.eye(5)[[3]], None).count == 5


def test_text_labels_stand_for_sorted_names() -> None:
    """Label 0 would be another class than in the list of names."""
    found = decode(["dog", "cat", "dog"], np.array(["cat"]), None)
    assert found.names == ("cat", "dog")
    assert found.train.tolist() == [1, 0, 1]
    assert found.test is not None
    assert found.test.tolist() == [0]
    assert decode(["b", "a"], None, ["b", "a", "c"]).train.tolist() == [0, 1], "the data set's own order counts"
    assert decode(["b", "a"], None, ["b", "a", "c"]).count == 3


def test_a_name_that_training_does_not_know_is_quoted() -> None:
    """A class would be evaluated under another one's number, or end in a KeyError."""
    for labels, classes in ((["cat", "dog"], None), (["cat", "dog"], ["cat", "dog"])):
        with pytest.raises(
            UserError, match="image 1 of the test split is 'wolf', which is not one of the classes cat, dog"
        ):
            decode(labels, ["cat", "wolf"], classes)


def test_a_label_out_of_range_of_the_test_split_is_found_by_its_index() -> None:
    """Nobody finds one wrong label among ten thousand."""
    with pytest.raises(UserError, match="image 2 of the test split is 3, but the data have 2 classes"):
        decode([0, 1], [0, 1, 3], None)
