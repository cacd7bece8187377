"""The model card: front matter that hubs read, and text that no name can turn into markup."""

from __future__ import annotations

import re

import pytest
import yaml

from kdcompress.report import MARK
from kdcompress.report.card import card
from kdcompress.report.facts import Facts
from report.conftest import HOSTILE, with_result


def test_front_matter(facts: Facts) -> None:
    """A hub would list the model without task, library and accuracy."""
    text = card(facts)
    _, front, body = text.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["library_name"] == "timm"
    assert values["pipeline_tag"] == "image-classification"
    assert "early-exit" in values["tags"]
    (entry,) = values["model-index"]
    assert entry["name"] == HOSTILE
    assert entry["results"][0]["metrics"][0]["value"] == facts.result.top1
    assert entry["results"][0]["dataset"]["split"] == "test"
    assert "base_model" not in values
    assert MARK in body
    hub = with_result(facts, teacher="hf-hub:timm/resnet50.a1_in1k")
    assert yaml.safe_load(card(hub).split("---\n", 2)[1])["base_model"] == "timm/resnet50.a1_in1k"


def test_agreement_is_no_metric(facts: Facts) -> None:
    """Hubs would rank a network by how often it agrees with another one."""
    front = yaml.safe_load(card(with_result(facts, agreement=True)).split("---\n", 2)[1])
    assert "model-index" not in front
    assert front["library_name"] == "timm"


def test_it_says_what_the_page_says(facts: Facts) -> None:
    """Card and page of one run would contradict each other."""
    text = card(facts)
    assert "reaches 87.96 % top-1 on the test split at 18.3 % of the teacher’s MACs" in text
    assert "| gated | this run | 87.96 % | 130 k | 18.3 % | 1.5 | 2.50 % |" in text
    assert "exit 1: 60.0 %, exit 2: 40.0 %" in text
    assert 'timm.create_model("local-dir:gated"' in text.replace("'", '"')


def test_classes_that_lost(facts: Facts) -> None:
    """A list of ten classes would read as ten that are worse, where none is."""
    assert "| 2 | 120 |" not in card(facts)
    assert "| 120 | 95.0 % | 85.0 % | 2 (10)" in card(facts)
    kept = facts.__class__(**{**vars(facts), "classes": facts.classes[1:]})
    assert "No class has lost accuracy." in card(kept)


def test_names_are_text(facts: Facts) -> None:
    """A class name with a pipe or an angle bracket would break the table, or run."""
    text = card(facts).split("---\n", 2)[2]
    outside = re.sub(r"(?ms)^ *(`{3,})\w+$.*?^ *\1$", "", text)
    assert "<script" not in outside
    assert "&lt;script&gt;" in outside


@pytest.mark.parametrize("command", ["kdcompress distill '```\n# big'", "kdcompress eval ````"])
def test_a_command_cannot_end_its_block(facts: Facts, command: str) -> None:
    """What follows three backticks in a path would be rendered."""
    step = facts.lineage[0].__class__("x", "this run", command, [])
    text = card(facts.__class__(**{**vars(facts), "lineage": [step]}))
    fence = re.search(r"^ *(`{3,})sh$", text, re.M)
    assert fence is not None
    assert fence[1] not in command
