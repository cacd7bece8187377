"""The web page: its numbers are the JSON's, nothing of it runs or is fetched, and it says what is missing."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from kdcompress.gating import LEARNED, MEASURES
from kdcompress.report import MARK, sentences
from kdcompress.report.facts import ClassScore, Facts
from kdcompress.report.page import page
from report.conftest import HOSTILE, made, with_result
from report.reading import Reading

BARE = {
    "teacher": None, "teacher_macs": None, "macs_ratio": None, "teacher_top1": None, "points_lost": None,
    "points_lost_interval": None, "teacher_ece": None, "measure": None, "thresholds": None, "exit_rates": None,
    "expected_macs": None, "expected_macs_ratio": None, "full_top1": None, "gated_top1": None, "stage_top1": None,
    "oracle_top1": None, "oracle_macs": None, "ms": None, "hardware": None, "members": None,
}  # fmt: skip


def bare(facts: Facts) -> Facts:
    """Of a single network that has no teacher, and was not timed."""
    facts = with_result(facts, **BARE, networks=[{**facts.result.networks[0], "macs_ratio": None, "ms": None}])
    return dataclasses.replace(
        facts,
        subject="network",
        marks=[dataclasses.replace(facts.marks[-1], kind="full", ms=None)],
        members=facts.members[:1],
        exits=[dataclasses.replace(facts.exits[0], name="all images", rate=1.0)],
        classes=[dataclasses.replace(row, before=None) for row in facts.classes],
        curve=[],
        oracle=[],
        trainings=[],
    )


def test_numbers_are_those_of_the_json(facts: Facts) -> None:
    """Somebody would decide by a number that no measurement gave."""
    read = Reading(page(facts))
    assert read.values == facts.result.to_dict()
    assert {
        "top1",
        "teacher_top1",
        "points_lost",
        "expected_macs",
        "expected_macs_ratio",
        "macs",
        "ms",
    } <= read.keys.keys()
    for key, (text, value) in read.keys.items():
        assert float(value) == read.values[key], key
        shown, *unit = text.split()
        factor = {"k": 1e3, "M": 1e6, "%": 100 if key.endswith("ratio") else 1}
        scale = factor.get(unit[0], 1) if unit else 1
        expected = read.values[key] * (scale if unit == ["%"] else 1) / (scale if unit != ["%"] else 1)
        assert float(shown) == pytest.approx(expected, rel=5e-3, abs=5e-3), key
    assert "87.96 % top-1 on the test split at 18.3 % of the teacher’s MACs, 2.31 points below" in read.text
    row = next(cells for cells in read.cells if cells[:2] == ["teacher", "teacher"])
    assert row[2:] == ["90.27 %", "1.6 M", "100 %", "9", "1.50 %"]


def test_names_are_text(facts: Facts) -> None:
    """A class or folder named like this would run in the reader's browser."""
    text = page(facts)
    read = Reading(text)
    assert "<script>alert" not in text
    assert read.scripts == []
    assert read.text.count(HOSTILE) >= 10


def test_json_cannot_end_its_element(facts: Facts) -> None:
    """What follows ``</script>`` in a path would be part of the page."""
    path = "/runs/</script><script>alert(2)</script><!--&"
    text = page(with_result(facts, run=path))
    assert "alert(2)</script" not in text
    read = Reading(text)
    assert read.values["run"] == path
    assert read.scripts == []


def test_nothing_is_fetched(facts: Facts) -> None:
    """A report about private images would tell a server who reads it, or look broken on a train."""
    text = page(facts)
    assert all(address.startswith("data:") for address in Reading(text).loads)
    assert not re.search(r"@import|url\(", text)
    assert "default-src 'none'" in text
    assert MARK in text[:200]


def test_a_network_without_teacher_gate_and_times(facts: Facts) -> None:
    """The report of a teacher, or of a network from elsewhere, would end in an error."""
    read = Reading(page(bare(facts)))
    assert read.keys.keys() == {"top1", "macs", "params", "ece"}
    assert "This network reaches 87.96 % top-1 on the test split for 250 k MACs per image." in read.text
    assert "this run has none" in read.text
    assert "milliseconds" not in read.text
    assert "Training" not in read.text.split("How it was made")[0].split("The guarantee")[1]


@pytest.mark.parametrize(
    ("lost", "words"),
    [(2.3, "2.30 points below the teacher"), (-1.0, "1.00 points above the teacher"), (0.0, "as many as the teacher")],
)
def test_the_sentence_says_which_way(facts: Facts, lost: float, words: str) -> None:
    """A gain would read as a loss."""
    assert words in sentences.headline(with_result(facts, points_lost=lost))


@pytest.mark.parametrize(
    ("measure", "side"), [("confidence", "at least"), ("entropy", "at most"), ("learned", "at least")]
)
def test_the_gate_in_words(facts: Facts, measure: str, side: str) -> None:
    """A reader would have to know which side of a threshold is sure."""
    words = sentences.gate_in_words(with_result(facts, measure=measure, thresholds=[0.25, None]).result)
    assert f"is {side} the threshold (after each member: 0.25 and no limit)" in words
    assert set(sentences.MEASURES) == {*MEASURES, LEARNED}


PROMISE = {"max_drop": 0.5, "confidence_level": 0.95, "images": 2500, "gates": 7, "broken": 9, "mended": 4,
           "p_value": 0.031, "enough_for_next": None}  # fmt: skip


def test_the_guarantee_in_words(facts: Facts) -> None:
    """What was promised, and what not, would have to be read from run.json."""
    words = " ".join(sentences.guarantee_in_words(dataclasses.replace(facts, promise=PROMISE)))
    assert "With 95 % confidence, this gate loses at most 0.5 points" in words
    assert "2,500 calibration images" in words
    assert "0.04 points lost" in words
    none = " ".join(sentences.guarantee_in_words(dataclasses.replace(facts, promise={**PROMISE, "p_value": None})))
    assert "no gate passed" in none
    assert "No guarantee was asked for" in sentences.guarantee_in_words(facts)[0]
    bound = {"confidence_level": 0.9, "images": 240, "macs_ratio": 0.425}
    cost = sentences.guarantee_in_words(dataclasses.replace(facts, cost_bound=bound))[0]
    assert "With 90 % confidence, this gate costs at most 42.5 % of the teacher's MACs" in cost
    assert "No guarantee was asked for" not in cost
    broken = with_result(dataclasses.replace(facts, promise=PROMISE), full_top1=89.0)
    assert "more than was promised" in " ".join(sentences.guarantee_in_words(broken))


def test_many_classes_are_shown_from_both_ends(facts: Facts) -> None:
    """A thousand rows would hide the twenty that matter."""
    rows = [ClassScore(f"class {number}", 10, 90.0, 80.0 + number / 100, []) for number in range(1000)]
    read = Reading(page(dataclasses.replace(facts, classes=rows)))
    assert "25 of 1000 classes" in read.text
    assert "class 0" in read.text
    assert "class 999" in read.text
    assert "class 500" not in read.text


def test_what_is_missing_is_said() -> None:
    """A reader would take a missing teacher for a teacher without loss."""
    assert "Teacher: it has gone" in Reading(page(made(missing=["Teacher: it has gone"]))).text
    assert "What is not here" not in Reading(page(made(missing=[]))).text


def test_templates_are_installed() -> None:
    """An installed package would have no page to write."""
    tomllib = pytest.importorskip("tomllib")
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["kdcompress"]
    package = root / "src" / "kdcompress"
    listed = {path for pattern in patterns for path in package.glob(pattern)}
    data = {path for path in package.rglob("*") if path.is_file() and path.suffix in (".html", ".css")}
    assert len(data) >= 5
    assert data <= listed


def test_agreement_is_not_called_accuracy(facts: Facts) -> None:
    """Without labels nobody knows how often the network is right."""
    agreed = with_result(facts, agreement=True)
    assert "% agreement with the teacher on the test split" in sentences.headline(agreed)
    assert "without labels" in sentences.certainty(agreed.result)
    assert "agreement" not in sentences.headline(facts)
    assert "probabilities be believed" in page(facts)
    assert "calibration error (ECE)" in page(facts)
    assert "probabilities be believed" not in page(agreed), "the teacher's answers are no truth to be sure of"
    assert "calibration error (ECE)" not in page(agreed)
    assert ">ECE<" in page(facts)
    assert ">ECE<" not in page(agreed)
