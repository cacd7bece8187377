"""A search that several machines share: no trial twice, one winner, and nothing believed that nobody wrote."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kdcompress
from chains import TINY
from heard import Heard
from kdcompress.api import crew, search_storage
from kdcompress.api import search as search_module
from kdcompress.api.search_storage import SearchStorage
from kdcompress.api.short_training import ShortTrainings
from kdcompress.api.trials import FOLDER, JOURNAL
from kdcompress.engine.interrupt import Interrupted
from kdcompress.errors import UserError
from kdcompress.models.candidates import Candidate, Series
from kdcompress.results import SearchResult, TrainResult

optuna = pytest.importorskip("optuna")
from kdcompress.api.checked_journal import CheckedJournal  # noqa: E402

COMMON: dict[str, Any] = {"device": "cpu", "precision": "fp32", "epochs": 1, "batch_size": 256}
FEW = [
    Series("resnet", "8", tuple(f"resnet8_cifar,width={width}" for width in (0.25, 0.375, 0.5))),
    Series("lenet", "5", tuple(f"lenet5,width={width}" for width in (0.25, 0.375, 0.5))),
]
Score = Callable[[Candidate, int], None]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled student whose teacher is on record."""
    root = tmp_path_factory.mktemp("made")
    kdcompress.train_teacher(model="resnet8_cifar", out=root / "teacher", **COMMON)
    kdcompress.distill(teacher=root / "teacher", method="reskd", student=TINY, out=root / "single", **COMMON)
    return root / "single"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(search_module, "series_for", lambda size: FEW)
    monkeypatch.setattr(crew, "POLL", 0.02)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(thread, spec) of every short training; that takes no time here, and what it scores is a function of the spec."""
    return trainings(monkeypatch, lambda candidate, epochs: None)


def trainings(patch: pytest.MonkeyPatch, on_the_way: Score) -> list[tuple[str, str]]:
    seen: list[tuple[str, str]] = []

    def score(self: ShortTrainings, candidate: Candidate, epochs: int) -> dict[str, float]:
        seen.append((threading.current_thread().name, candidate.spec))
        on_the_way(candidate, epochs)
        return {"top1": 50.0 + len(candidate.spec), "expected_macs_ratio": candidate.macs / 1e9}

    patch.setattr(ShortTrainings, "score", score)
    patch.setattr(ShortTrainings, "level", lambda _, score: int(score["top1"]))
    return seen


def searched(run: Path, storage: object, **given: Any) -> TrainResult | SearchResult:
    wanted = {"search": True, "max_macs": 0.9, "trials": 4, "search_storage": str(storage), **given}
    return kdcompress.add_res_student(run=run, **{**COMMON, **wanted})


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A journal file, if not a database is asked for."""
    kind = getattr(request, "param", "journal")
    return str(tmp_path / "shared.log") if kind == "journal" else f"sqlite:///{tmp_path}/shared.db"


both = pytest.mark.parametrize("storage", ["journal", "database"], indirect=True)


# --- who runs what


@both
def test_several_processes_share_the_trials(single: Path, storage: str, ran: list[Any]) -> None:
    """Three machines would do three times the same work, or come to three winners."""
    results: dict[str, Any] = {}

    def machine(name: str) -> None:
        results[name] = searched(single, storage, trials=6, **({"out": "best"} if name == "first" else {}))

    threads = [threading.Thread(target=machine, args=(name,), name=name) for name in ("first", "second", "third")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results.keys() == {"first", "second", "third"}
    assert sorted(Counter(spec for _, spec in ran).values()) == [1] * 6, ran
    first, second, third = (results[name] for name in ("first", "second", "third"))
    assert isinstance(first, TrainResult)
    assert first.search == second.search == third.search
    assert second.arch == third.arch == first.search[0]["spec"] == first.members[-1]["architecture"]
    assert second.to_dict().keys() == {"command", "run", "seconds", "arch", "search"}
    assert {Path(one.run).parent.name for one in (second, third)} == {"runs"}
    with pytest.raises(UserError, match="resume=True, out="):
        kdcompress.evaluate(run=second.run)


def test_the_winner_may_be_trained_later(single: Path, storage: str, ran: list[Any]) -> None:
    """The machine with the folder died: the trials of the others would be lost with it."""
    helped = searched(single, storage)
    assert isinstance(helped, SearchResult)
    ran.clear()
    result = searched(single, storage, out="best")
    assert ran == []
    assert isinstance(result, TrainResult)
    assert result.search == helped.search
    assert searched(single, storage, resume=True) == SearchResult(
        **{**vars(helped), "seconds": pytest.approx(0, abs=9)}
    )


@both
def test_a_machine_that_dies(single: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would wait for its trial for ever, or leave the architecture out."""

    def dies(candidate: Candidate, epochs: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        begun = trainings(patch, dies)
        with pytest.raises(Interrupted) as caught:
            searched(single, storage)
    assert "out=" not in caught.value.remedy
    monkeypatch.setattr(crew, "DEAD", 0.3)
    heard, ran = Heard(), trainings(monkeypatch, lambda candidate, epochs: None)
    result = searched(single, storage, reporter=heard)
    specs = [spec for _, spec in ran]
    assert len(specs) == len(set(specs)) == len(result.search) == 4
    assert begun[0][1] in specs
    assert any(f"training {begun[0][1]} has not responded" in note for note in heard.notes)
    ran.clear()
    again = searched(single, storage, resume=True)
    assert (again.search, ran) == (result.search, [])


def test_a_machine_that_resumes(single: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart its own trial would be taken for another's, and be waited for."""
    count = iter(range(9))

    def cut_off(candidate: Candidate, epochs: int) -> None:
        if next(count) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        before = trainings(patch, cut_off)
        with pytest.raises(Interrupted):
            searched(single, storage)
    after = trainings(monkeypatch, lambda candidate, epochs: None)
    result = searched(single, storage, resume=True)
    assert after[0] == before[1]
    assert len(before + after[1:]) == len(result.search) == 4


def test_a_slow_machine_that_counted_as_dead(single: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that wakes up would overwrite what another has made of its trial, or end in a traceback."""
    asleep, taken, heard = threading.Event(), threading.Event(), Heard()

    def sleeps(candidate: Candidate, epochs: int) -> None:
        if threading.current_thread().name == "sleeper" and not asleep.is_set():
            asleep.set()
            assert taken.wait(60)

    ran = trainings(monkeypatch, sleeps)
    results: list[Any] = []
    sleeper = threading.Thread(target=lambda: results.append(searched(single, storage, reporter=heard)), name="sleeper")
    sleeper.start()
    assert asleep.wait(60)
    monkeypatch.setattr(crew, "DEAD", 0.3)
    other = searched(single, storage)
    taken.set()
    sleeper.join(60)
    assert results[0].search == other.search
    assert len(other.search) == 4
    assert Counter(spec for _, spec in ran)[ran[0][1]] == 2
    assert any("this one did not respond" in note for note in heard.notes)


def test_time_is_up_for_all(single: Path, storage: str, ran: list[Any]) -> None:
    """Machines that began later would go on alone, and find another winner."""
    result = searched(single, storage, time_budget="0.001s", trials=6)
    assert len(result.search) == 1
    assert searched(single, storage, trials=6).search == result.search


def test_nobody_waits_for_a_trial_that_will_not_run(tmp_path: Path) -> None:
    """All others would wait two minutes for what one of them had only meant to try."""
    study = SearchStorage.of(str(tmp_path / "shared.log")).study()
    one, other = (crew.Crew(study, name, print) for name in ("one", "other"))
    one.propose({"width": 0.5})
    assert one.left() is not None
    assert other.enough(0, 1)
    one.close()
    other.close()
    assert other.closed
    assert not [trial for trial in study.trials if one.is_done(trial)]


# --- what is refused


def test_other_options_are_refused(single: Path, storage: str, tmp_path: Path, ran: list[Any]) -> None:
    """Scores of other trainings, data or networks would decide."""
    searched(single, storage)
    with pytest.raises(UserError, match=r"shared.* began with max_macs=0\.9") as caught:
        searched(single, storage, max_macs=0.8)
    assert caught.value.exit_code == 2
    assert "search_storage=" in caught.value.remedy
    other = kdcompress.distill(teacher=single.parent / "teacher", method="reskd", student=TINY, seed=1, **COMMON)
    with pytest.raises(UserError, match="began with another run"):
        searched(Path(str(other.run)), storage)


def test_a_folder_keeps_to_its_storage(single: Path, tmp_path: Path, ran: list[Any]) -> None:
    """Resumed without it, a search would begin anew beside the others."""
    helped = searched(single, tmp_path / "shared.log")
    with pytest.raises(UserError, match=r"stores its trials in .*shared\.log"):
        kdcompress.add_res_student(run=single, search=True, max_macs=0.9, out=helped.run, resume=True, **COMMON)
    kdcompress.add_res_student(run=single, search=True, max_macs=0.9, trials=1, out="alone", **COMMON)
    (tmp_path / "alone" / "run.json").write_text('{"command": "add-res-student", "status": "unfinished"}')
    with pytest.raises(UserError, match=r"stores its trials in .*alone/search/journal\.log"):
        searched(single, tmp_path / "shared.log", out="alone", resume=True)
    with pytest.raises(UserError, match=r"began with other candidate architectures|began with no"):
        searched(single, tmp_path / "alone" / FOLDER / JOURNAL)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("absent/shared.log", "no folder"),
        (".", "is not a file"),
        ("pipe", "is not a file"),
        ("nonsense://me:secret@host:port/x", "not a URL that SQLAlchemy can parse"),
        ("oracle+cx_oracle://me:secret@host/x", "oracle"),
        ("nonsense://me:secret@host/x", "nonsense"),
        ("sqlite:////absent/folder/x.db", "unable to open"),
    ],
)
def test_invalid_storages_are_refused(tmp_path: Path, text: str, words: str) -> None:
    """The password would stand in the log; or a pipe be waited for."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=words) as caught:
        SearchStorage.of(text).study()
    assert "secret" not in str(caught.value)


def test_passwords_are_never_shown(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run folder that is passed on would hand over the database."""
    genuine = search_storage._database
    monkeypatch.setattr(search_storage, "_database", lambda url: genuine(f"sqlite:///{tmp_path}/shared.db"))
    heard = Heard()
    url = "postgresql://me:sec%26ret@host/trials?sslpassword=hidden"
    searched(single, url, trials=1, out="best", reporter=heard)
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert json.loads((tmp_path / "best" / "run.json").read_text())["options"]["search_storage"] == (
        "postgresql://me@host/trials"
    )
    for secret in ("sec%26ret", "sec&ret", "hidden"):
        assert not any(secret.encode() in content for content in kept)
        assert not any(secret in note for note in heard.notes)
        assert secret not in repr(SearchStorage.of(url))
    with pytest.raises(UserError, match="refused me:") as caught, SearchStorage.of(url).reached():
        raise optuna.exceptions.StorageInternalError("…") from RuntimeError("refused me:sec&ret")
    assert "sec&ret" not in str(caught.value)


def test_search_storage_needs_a_search(single: Path) -> None:
    """An option that does nothing would be believed to do something."""
    with pytest.raises(UserError, match="search_storage= has no effect"):
        kdcompress.add_res_student(run=single, arch=TINY, search_storage="x.log", **COMMON)


# --- what is believed


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Path]:
    """One with a study and a trial in it."""
    path = tmp_path / "trials.log"
    study = SearchStorage.of(str(path)).study()
    study.set_user_attr("winner", TINY)
    trial = study.ask()
    trial.suggest_float("width", 0, 1)
    study.tell(trial, 0.1)
    return path


def logs(path: Path) -> list[dict[str, Any]]:
    return list(CheckedJournal(path).read_logs(0))


def test_flipped_bytes_are_found(journal: Path) -> None:
    """A score with another digit would let another network win."""
    whole = journal.read_bytes()
    written = logs(journal)
    refused = 0
    for position in range(len(whole) - 1):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        journal.write_bytes(flipped)
        try:
            same = logs(journal) == written
        except UserError:
            refused += 1
        else:
            assert same, f"byte {position}"
    assert refused > 0.98 * len(whole), "only what makes no difference, such as E for e, may pass"
    lines = whole.splitlines(keepends=True)
    bare = json.dumps({key: value for key, value in json.loads(lines[2]).items() if key != "xxh3"})
    journal.write_bytes(b"".join([*lines[:2], bare.encode() + b"\n", *lines[3:]]))
    with pytest.raises(UserError, match="line 3 is damaged"):
        logs(journal)


def test_journals_of_optuna_and_for_optuna(journal: Path, tmp_path: Path) -> None:
    """A search that an earlier version began would be lost; or its trials be hidden from Optuna's own tools."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    def read(path: Path) -> list[Any]:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.load_study(study_name="res-student", storage=storage).trials

    assert [trial.value for trial in read(journal)] == [0.1]
    plain = tmp_path / "old.log"
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    plain.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "xxh3"}) + "\n" for line in lines))
    assert logs(plain) == logs(journal)
    SearchStorage.of(str(plain)).study().set_user_attr("more", 1)
    assert len(read(plain)) == 1
    assert sum(b"xxh3" in line for line in plain.read_bytes().splitlines()) == 2


def test_a_half_written_line_is_removed(journal: Path) -> None:
    """A kill in the middle of a line would spoil the one after it, and with it the whole search."""
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":2,"wor')
    study = SearchStorage.of(str(journal)).study()
    study.set_user_attr("after", 1)
    assert study.user_attrs["after"] == 1
    assert journal.read_bytes().startswith(whole + b'{"op_code":')
    assert b'"wor{' not in journal.read_bytes()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"winner": " py:os:getcwd"}, r"holds the architecture ' py:os:getcwd'"),
        ({"origin": 3}, "holds an invalid origin: 3"),
        ({"spec": "resnet8_cifar,width=64"}, "holds the architecture 'resnet8_cifar,width=64'"),
        ({"scores": {"1": {"top1": float("nan"), "expected_macs_ratio": 0.1}}}, "holds malformed scores"),
        ({"scores": {"../1": {"top1": 9.0, "expected_macs_ratio": 0.1}}}, "holds malformed scores"),
    ],
)
def test_content_of_a_shared_storage_is_checked(
    single: Path, storage: str, ran: list[Any], changed: dict[str, Any], words: str
) -> None:
    """Whoever can write to the storage could have any network built and trained, or code imported."""
    searched(single, storage, trials=1)
    study = SearchStorage.of(storage).study()
    for name, value in changed.items():
        if name in ("spec", "scores"):
            made = optuna.create_trial(value=1.0, user_attrs={"spec": TINY, "scores": {}, name: value})
            study.add_trial(made)
        else:
            study.set_user_attr(name, value)
    with pytest.raises(UserError, match=words):
        searched(single, storage, trials=1, out="best")
    assert not Path("best/model.safetensors").exists()


def test_the_journal_of_one_process_is_checked_too(single: Path, tmp_path: Path, ran: list[Any]) -> None:
    """A run folder that somebody passed on could have code imported."""
    given: dict[str, Any] = {**COMMON, "run": single, "search": True, "max_macs": 0.9, "trials": 1, "out": "best"}
    kdcompress.add_res_student(**given)
    (tmp_path / "best" / "run.json").write_text('{"command": "add-res-student", "status": "unfinished"}')
    study = SearchStorage.of(str(tmp_path / "best" / FOLDER / JOURNAL)).study()
    study.set_user_attr("winner", " py:os:getcwd")
    with pytest.raises(UserError, match="holds the architecture ' py:os:getcwd'"):
        kdcompress.add_res_student(**given, resume=True)
