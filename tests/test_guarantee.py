"""Promised gates: how often the promise may break, that it can be kept at all, and what is said where it cannot."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from kdcompress.deferral import fit_heads
from kdcompress.errors import UserError
from kdcompress.gate_search import descent, search, towards
from kdcompress.gating import Gate, MemberScores, learned, outcome
from kdcompress.guarantee import drop_p_value, guaranteed_gate, least_images

MACS = (2, 1)


@pytest.mark.parametrize("error", [0.05, 0.2])
def test_the_error_rate_is_at_most_the_level(error: float) -> None:
    """The guarantee would fail more often than stated. All outcomes of 40 images, at the edge of the hypothesis."""
    samples, drop = 40, 0.1
    pairs = [pair for pair in itertools.product(range(samples + 1), repeat=2) if sum(pair) <= samples]
    passed = [pair for pair in pairs if drop_p_value(*pair, samples, 100 * drop, error) <= error]
    counts = [(broken, mended, samples - broken - mended) for broken, mended in passed]
    assert passed
    for mended in (0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.449):
        rates = (mended + drop, mended, 1 - drop - 2 * mended)
        assert stats.multinomial.pmf(counts, samples, rates).sum() <= error


def test_the_test_is_nearly_as_powerful_as_the_best_one() -> None:
    """A test that never passes a gate would be valid, but useless."""
    samples, drop, mended = 4000, 0.005, 0.01
    loss = 8  # of the 20 that are allowed
    spread = math.sqrt(samples * (2 * mended + drop))
    known = stats.norm.cdf((loss + 0.5 - samples * drop) / spread)  # if the rate of disagreement were known
    found = drop_p_value(int(samples * mended) + loss, int(samples * mended), samples, 100 * drop)
    assert known < found < 2 * known


def test_more_broken_predictions_give_a_larger_p_value() -> None:
    """A worse gate would pass where a better one failed."""
    for mended in (0, 5, 40):
        values = [drop_p_value(broken, mended, 2000, 1.0) for broken in range(0, 120, 3)]
        assert values == sorted(values)
        assert values[0] < 0.05 < values[-1]
    assert drop_p_value(2000, 0, 2000, 1.0) == 1


@pytest.mark.parametrize(("max_drop", "level"), [(0.5, 0.95), (2.0, 0.9), (50.0, 0.5)])
def test_fewer_images_than_the_least_do_not_pass(max_drop: float, level: float) -> None:
    """The advice would be for too few images, or for more than needed."""
    needed = least_images(max_drop, level)
    assert drop_p_value(0, 0, needed, max_drop, 1 - level) <= 1 - level
    assert drop_p_value(0, 0, needed - 1, max_drop, 1 - level) > 1 - level
    assert needed >= math.log(1 - level) / math.log1p(-max_drop / 100), "the chance that none of so many shows a loss"


def population(seed: int = 0, count: int = 60_000) -> tuple[Tensor, Tensor]:
    """Logits ``[2, N, K]`` after a first member that is surer where it is correct, and after a better one."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=random)
    signal = torch.nn.functional.one_hot(labels, 5).float()
    ease = 3 * torch.rand(count, 1, generator=random)
    first = signal * ease + 0.8 * torch.randn(count, 5, generator=random)
    second = 1.5 * signal + 0.8 * torch.randn(count, 5, generator=random)
    return torch.stack([first, first + second]), labels


def digits() -> tuple[Tensor, Tensor]:
    """Real logits ``[3, N, K]`` of classifiers of digits, by ever more pixels."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    fit, others = order[:600], order[600:]
    sums = []
    for pixels in (slice(20, 28), slice(16, 40), slice(0, 64)):
        model = LogisticRegression(max_iter=200).fit(images[fit][:, pixels] / 16, labels[fit])
        sums.append(model.decision_function(images[others][:, pixels] / 16))
    return torch.from_numpy(np.stack(sums)).float(), torch.from_numpy(labels[others])


@pytest.mark.parametrize(
    ("made", "macs", "measures", "draws"),
    [
        (functools.partial(population, count=20_000), MACS, ["confidence"], 60),
        (digits, (1, 2, 4), ["confidence", "agreement"], 40),
    ],
)
def test_the_guarantee_holds(
    made: Callable[[], tuple[Tensor, Tensor]], macs: tuple[int, ...], measures: list[str], draws: int
) -> None:
    """Of so many calibrations at most 5 % may lose more than allowed; with plain thresholds far more do."""
    logits, labels = made()
    true = {measure: MemberScores.from_logits(logits, labels, macs, measure) for measure in measures}
    first = measures[0]
    limit = outcome(true[first], first, [None] * (len(macs) - 1)).top1 - 1.0
    random = torch.Generator().manual_seed(1)
    broken, plain, saved = 0, 0, 0.0
    for draw in range(draws):
        chosen = torch.randint(0, len(labels), (1500,), generator=random)
        one = logits[:, chosen], labels[chosen], macs
        found = guaranteed_gate(*one, measures, max_drop=1.0, confidence_level=0.95, seed=draw)
        kept = outcome(true[found.measure], found.measure, found.thresholds)
        broken += kept.top1 < limit
        saved += 1 - kept.expected_macs / sum(macs)
        thresholds = search(MemberScores.from_logits(*one, first), first, max_drop=1.0)[0].thresholds
        plain += outcome(true[first], first, thresholds).top1 < limit
    assert broken / draws <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)
    assert plain / draws > 0.25
    assert saved / draws > 0.03, "kept by running everything"


def test_testing_ends_with_the_first_gate_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among many gates one passes by chance: nothing is guaranteed after the first failure."""
    logits, labels = population(count=3000)
    given = (logits, labels, MACS, ["confidence"])
    asked: list[int] = []

    def p_value(*_: object) -> float:
        asked.append(1)
        return 0.5 if len(asked) == 3 else 0.01

    monkeypatch.setattr("kdcompress.guarantee.drop_p_value", p_value)
    monkeypatch.setattr("kdcompress.guarantee.least_images", lambda *_: 10)
    monkeypatch.setattr("kdcompress.guarantee._enough", lambda *_: None)
    found = guaranteed_gate(*given, max_drop=1.0, confidence_level=0.95)
    assert (len(asked), found.gates) == (3, 3)
    asked[:] = [1] * 10  # none fails
    bolder = guaranteed_gate(*given, max_drop=1.0, confidence_level=0.95)
    scores = MemberScores.from_logits(logits, labels, MACS, "confidence")
    costs = [outcome(scores, "confidence", each.thresholds).expected_macs for each in (found, bolder)]
    assert costs[1] < costs[0] < sum(MACS)


def test_gates_are_tested_from_the_most_expensive() -> None:
    """A gate that fails must not hide behind a cheaper one that passed."""
    logits, labels = population(count=800)
    scores = MemberScores.from_logits(logits, labels, MACS, "confidence")
    path = descent(scores, "confidence", 2.0)
    costs = [each.expected_macs for each in path]
    assert len(path) > 5
    assert costs == sorted(costs, reverse=True)
    assert all(each.top1 >= outcome(scores, "confidence", [None]).top1 - 2.0 for each in path)


def test_few_images_guarantee_a_conservative_gate() -> None:
    """The first gate of the Pareto front may stop most images; if it fails, conservative ones are never tested."""
    logits, labels = population()
    random = torch.Generator().manual_seed(1)
    found = []
    for draw in range(10):
        chosen = torch.randint(0, len(labels), (2 * least_images(0.5, 0.95) + 100,), generator=random)
        given = logits[:, chosen], labels[chosen], MACS, ["confidence"]
        found.append(guaranteed_gate(*given, max_drop=0.5, confidence_level=0.95, seed=draw))
    assert sum(each.thresholds != (None,) for each in found) >= 9


@pytest.mark.parametrize("measure", ["confidence", "entropy"])
def test_the_gates_before_the_pareto_front(measure: str) -> None:
    """Fixed-sequence testing needs gates of growing risk, or one that fails hides others that would pass."""
    logits, labels = population(count=800)
    scores = MemberScores.from_logits(torch.cat([logits, logits[-1:] + logits[:1]]), labels, (2, 1, 1), measure)
    goal = outcome(scores, measure, [0.6, 0.5])
    way = [*towards(scores, measure, goal.thresholds, 10), goal]
    stopped = [each.exit_rates[0] + each.exit_rates[1] for each in way]
    assert stopped == sorted(stopped)
    assert stopped[0] == pytest.approx(stopped[-1] / 10, abs=0.01)
    assert all(limit is None for limit in towards(scores, measure, [None, None], 3)[0].thresholds)


def test_too_few_images_are_named() -> None:
    """The user could not know whether to fetch more images, or how many."""
    logits, labels = population(count=200)
    with pytest.raises(UserError, match=str(2 * least_images(0.5, 0.95))):
        guaranteed_gate(logits, labels, MACS, ["confidence"], max_drop=0.5, confidence_level=0.95)
    heads = learned(fit_heads(logits, labels))  # on as many others
    with pytest.raises(UserError, match=rf"^400 .*{4 * least_images(0.5, 0.95)}"):
        guaranteed_gate(logits, labels, MACS, [heads], max_drop=0.5, confidence_level=0.95)


def test_where_no_gate_passes_all_members_run() -> None:
    """With a first member that is equally sure of all images, no gate passes; the result must still be valid."""
    logits, labels = population(count=1500)
    logits[0] = torch.eye(5)[torch.randint(0, 5, (1500,), generator=torch.Generator().manual_seed(2))]
    logits[1] *= 20
    found = guaranteed_gate(logits, labels, MACS, ["confidence", "energy"], max_drop=1.0, confidence_level=0.95)
    assert found.thresholds == (None,)
    assert found.gates == 0
    assert found.p_value is None
    Gate(found.measure, found.thresholds)


def test_the_choice_of_the_measure_does_not_see_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen by the images that test it, a gate would look better than it is."""
    logits, labels = population(count=3000)
    given = {"max_drop": 1.0, "confidence_level": 0.9, "seed": 3}
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(3))
    found = guaranteed_gate(logits, labels, MACS, ["confidence", "energy", "margin"], **given)
    scrambled = labels.clone()
    scrambled[order[1500:]] = (labels[order[1500:]] + 1) % 5
    assert (
        guaranteed_gate(logits, scrambled, MACS, ["confidence", "energy", "margin"], **given).measure == found.measure
    )


def test_copies_are_one_draw() -> None:
    """A burst of five photos counted as five images, so that the promise was broken far more often than it says."""
    logits, labels = population(seed=0, count=400)
    groups = torch.arange(400).repeat(5)
    given = logits.repeat(1, 5, 1), labels.repeat(5), MACS, ["confidence"]
    found = guaranteed_gate(*given, max_drop=3.0, confidence_level=0.95, groups=groups)
    once = guaranteed_gate(logits, labels, MACS, ["confidence"], max_drop=3.0, confidence_level=0.95)
    assert found.images == once.images == 200
    with pytest.raises(UserError, match="400 distinct calibration images are too few"):
        guaranteed_gate(*given, max_drop=0.5, confidence_level=0.95, groups=groups)
