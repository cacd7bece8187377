"""The accuracy of a run's teacher: from where it is known, else scored once, and left out with a word why not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import kdcompress
from chains import COMMON, CPU, TINY, WHERE, Chain, logits_on, record_of, top1
from heard import Heard
from kdcompress import cache, score_cache
from kdcompress.api import teacher_score
from kdcompress.api.teacher_score import TeacherScores
from kdcompress.data import load_source
from kdcompress.errors import UserError
from kdcompress.options import EvalOptions
from kdcompress.runs import WEIGHTS, RunFolder

KEY = {"fingerprint": "abc", "split": "test", "holdout": None}


def scores(folder: Path, split: str = "test") -> TeacherScores:
    return TeacherScores(split, load_source("digits"), EvalOptions(cache_dir=str(folder), **WHERE), CPU, Heard())


def entry_of(chain: Chain, **changes: Any) -> dict[str, Any]:
    return {**record_of(chain.student.run)["teacher"], **changes}


def test_the_teacher_is_scored_once(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher of ImageNet would be run for an hour with every student that is evaluated."""
    first = scores(tmp_path)
    found = first.top1(entry_of(chain))
    assert found == pytest.approx(top1(*logits_on(kdcompress.load(str(chain.teacher.run)), "test")), abs=1e-3)
    assert any("Scoring the teacher" in note for note in first.reporter.notes)  # type: ignore[attr-defined]
    monkeypatch.setattr(teacher_score, "load_network", None)
    assert scores(tmp_path).top1(entry_of(chain)) == found


def test_eval_of_the_teacher_itself_is_remembered(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images would be scored twice."""
    teacher = kdcompress.evaluate(run=chain.teacher.run, cache_dir=tmp_path, **WHERE)
    assert (teacher.teacher_top1, teacher.points_lost) == (None, None)
    monkeypatch.setattr(teacher_score, "load_network", None)
    student = kdcompress.evaluate(run=chain.student.run, cache_dir=tmp_path, **WHERE)
    assert student.teacher_top1 == teacher.top1
    assert student.points_lost == pytest.approx(teacher.top1 - student.top1, abs=1e-3)


def test_the_teachers_own_record_is_enough(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training would run the teacher once more for what train-teacher has printed."""
    monkeypatch.setattr(TeacherScores, "_score", None)
    assert scores(tmp_path, "calibration").top1(entry_of(chain)) == chain.teacher.top1
    for made in (chain.student, chain.cascade, chain.longer, chain.gated):
        assert made.teacher_top1 == chain.teacher.top1
    assert chain.gated.points_lost == pytest.approx(chain.teacher.top1 - chain.gated.gated_top1, abs=1e-3)


def test_other_images_are_other_scores(chain: Chain, tmp_path: Path) -> None:
    """The accuracy on one data set would be reported for another."""
    entry = entry_of(chain)
    own = scores(tmp_path)
    keys = [own._key(entry), scores(tmp_path, "calibration")._key(entry)]
    keys.append(dataclasses.replace(own, source=dataclasses.replace(own.source, fingerprint="x"))._key(entry))
    keys.append(dataclasses.replace(own, place=dataclasses.replace(CPU, precision="bf16"))._key(entry))
    keys.append(own._key({**entry, "fingerprint": "x"}))
    keys.append(own._key({**entry, "macs": 1}))  # the same weights at another input size
    keys.append(own._key({**entry, "input": "x"}))  # or with another normalisation
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(keys)


def test_a_checkpoint_is_scored_at_the_size_that_it_teaches_at(chain: Chain, tmp_path: Path) -> None:
    """Images would be enlarged to the size of its architecture, and the student be said to lose less than it does."""
    given = {"arch": "resnet8_cifar,in_chans=1", "data": "digits"}
    weights = str(Path(str(chain.teacher.run)) / WEIGHTS)
    teacher = {"teacher": weights, "teacher_arch": given["arch"], "data": "digits"}
    student = kdcompress.distill(student=TINY, out=str(tmp_path / "student"), **teacher, **COMMON)
    assert record_of(student.run)["teacher"]["input_size"] == [1, 8, 8]
    alone = kdcompress.evaluate(run=weights, cache_dir=tmp_path / "one", **given, **WHERE).top1
    found = kdcompress.evaluate(run=student.run, cache_dir=tmp_path / "two", **WHERE)
    assert found.teacher_top1 == alone


def test_what_cannot_be_scored_is_said(chain: Chain, tmp_path: Path) -> None:
    """A missing row would be taken for a loss of nothing, or the whole eval fail for a teacher that was moved."""
    moved = tmp_path / "moved"
    shutil.copytree(str(chain.student.run), moved)
    cases = [
        (entry_of(chain, reference=str(tmp_path / "gone")), "is not on this disk"),
        (entry_of(chain, reference="hf-hub:someone/teacher"), "is not on this disk"),
        (entry_of(chain, reference="py:somewhere:teacher"), "is not on this disk"),
        (entry_of(chain, fingerprint="0" * 16), "has changed since"),
    ]
    for entry, words in cases:
        asked = scores(tmp_path / "cache")
        assert asked.top1(entry) is None
        assert len(asked.reporter.notes) == 1  # type: ignore[attr-defined]
        assert words in asked.reporter.notes[0]  # type: ignore[attr-defined]
        assert asked.top1(entry, wanted=False) is None
        if not entry["reference"].startswith("hf-hub:"):  # there is no network here
            with pytest.raises(UserError):
                asked.top1(entry, wanted=True)


def test_code_that_a_record_names_is_not_run(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever shares a run could have anything run by eval."""
    (tmp_path / "evil.py").write_text("open('done', 'w')\ndef teacher(): ...\n")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(str(chain.student.run), run)
    record = json.loads((run / "run.json").read_text())
    record["teacher"]["reference"] = "py:evil:teacher"
    (run / "run.json").write_text(json.dumps(record))
    RunFolder(run).accept()
    nothing_known = {"cache_dir": tmp_path / "cache", **WHERE}
    assert kdcompress.evaluate(run=run, **nothing_known).teacher_top1 is None
    with pytest.raises(UserError, match="names code"):
        kdcompress.evaluate(run=run, score_teacher=True, **nothing_known)
    assert not (tmp_path / "done").exists()


def test_a_lightweight_teacher_is_not_scored(chain: Chain, tmp_path: Path) -> None:
    """It has never seen such images: points lost against it mean nothing."""
    entry = entry_of(chain)
    del entry["macs"]
    assert scores(tmp_path).top1(entry, wanted=True) is None


@pytest.mark.parametrize("damage", ["cut", "other top-1", "other key", "nonsense", "list", "absent"])
def test_a_damaged_score_is_not_believed(tmp_path: Path, damage: str) -> None:
    """A bit that flips on the disk would end in a report."""
    score_cache.remember(tmp_path, KEY, 91.25)
    assert score_cache.recall(tmp_path, KEY) == 91.25
    (file,) = (tmp_path / "scores").iterdir()
    content = json.loads(file.read_text())
    changed = {
        "cut": file.read_text()[:-9],
        "other top-1": json.dumps({**content, "top1": 99.0}),
        "other key": json.dumps({**content, "key": {}}),
        "nonsense": "\x00\xff",
        "list": "[]",
    }
    file.unlink() if damage == "absent" else file.write_text(changed[damage])
    assert score_cache.recall(tmp_path, KEY) is None


def test_a_cache_that_cannot_be_used_costs_only_time(tmp_path: Path) -> None:
    """An eval of an hour would fail at its end for a full disk."""
    (tmp_path / "file").write_text("")
    score_cache.remember(tmp_path / "file", KEY, 91.25)
    assert score_cache.recall(tmp_path / "file", KEY) is None


def test_scores_are_listed_and_cleared(tmp_path: Path) -> None:
    """``cache --clear`` would leave something behind that nobody finds."""
    assert cache.cached_entries(tmp_path) == []
    score_cache.remember(tmp_path, KEY, 91.25)
    score_cache.remember(tmp_path, {**KEY, "split": "calibration"}, 92.0)
    (entry,) = cache.cached_entries(tmp_path)
    assert (entry.kind, entry.key) == ("scores", {"network": "accuracy of 2 networks"})
    assert entry.bytes > 100
    cache.clear(tmp_path)
    assert cache.cached_entries(tmp_path) == []
    assert score_cache.recall(tmp_path, KEY) is None
