"""The gate: what it costs, what it loses, and that no better one exists."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcompress import gate_search, options
from kdcompress.errors import UserError
from kdcompress.gate_search import best_measure, search
from kdcompress.gating import MEASURES, Gate, MemberScores, Outcome, expected_macs, outcome

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
measures = st.sampled_from(sorted(MEASURES))
Thresholds = Sequence[float | None]


@st.composite
def cascades(draw: st.DrawFn, exits: int | None = None, levels: int = 4) -> MemberScores:
    """A few samples on a coarse scale, so that ties are the rule."""
    count = draw(st.integers(1, 3)) if exits is None else exits
    samples = draw(st.integers(1, 9 if count < 3 else 6))
    values = draw(st.lists(st.integers(0, levels), min_size=count * samples, max_size=count * samples))
    correct = draw(st.lists(st.booleans(), min_size=(count + 1) * samples, max_size=(count + 1) * samples))
    macs = draw(st.lists(st.integers(1, 50), min_size=count + 1, max_size=count + 1))
    return MemberScores(
        torch.tensor(values).view(count, samples) / levels,
        torch.tensor(correct).view(count + 1, samples),
        tuple(macs),
    )


def simulate(scores: MemberScores, measure: str, thresholds: Thresholds) -> tuple[int, int, list[int]]:
    """One sample at a time: total MACs and correct predictions, and how many samples stop at each exit."""
    macs, correct = list(scores.macs), scores.correct.tolist()
    values = [[float(v) for v in row] for row in scores.values]
    cost, right, exits = 0, 0, [0] * len(macs)
    for sample in range(len(correct[0])):
        for member in range(len(macs)):
            cost += int(macs[member])
            if member < len(thresholds):
                limit = thresholds[member]
                if limit is None:
                    continue
                sure = values[member][sample]
                if sure > limit if measure == "entropy" else sure < limit:
                    continue
            exits[member] += 1
            right += correct[member][sample]
            break
    return cost, right, exits


def every_gate(scores: MemberScores) -> Iterator[tuple[float | None, ...]]:
    """Each observed value as a threshold: all distinct gates."""
    choices = [[None, *sorted(set(row.tolist()))] for row in scores.values]
    return itertools.product(*choices)


def totals(scores: MemberScores, found: Outcome) -> tuple[int, int]:
    samples = scores.correct.shape[1]
    cost, right = round(found.expected_macs * samples), round(found.top1 * samples / 100)
    assert found.expected_macs == cost / samples
    assert found.top1 == 100 * right / samples
    return cost, right


def pareto(points: set[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted(p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points))


@pytest.mark.parametrize("count", [1, 2, 3])
@quick
@given(data=st.data(), measure=measures)
def test_search_by_drop_equals_brute_force(count: int, data: st.DataObject, measure: str) -> None:
    """Lost: the cheapest gate that keeps the required accuracy."""
    scores = data.draw(cascades(count))
    samples, full = scores.correct.shape[1], int(scores.correct[-1].sum())
    lost = data.draw(st.integers(0, samples))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_search, "_CHUNK", data.draw(st.sampled_from([1, 12, 1 << 18])))
        found, curve = search(scores, measure, max_drop=100 * lost / samples)
    gates = [simulate(scores, measure, gate)[:2] for gate in every_gate(scores)]
    assert totals(scores, found) == min(((c, r) for c, r in gates if full - r <= lost), key=lambda g: (g[0], -g[1]))
    assert [totals(scores, point) for point in curve] == pareto(set(gates))


@pytest.mark.parametrize("count", [1, 2, 3])
@quick
@given(data=st.data(), measure=measures)
def test_search_by_macs_equals_brute_force(count: int, data: st.DataObject, measure: str) -> None:
    """Lost: the most accurate gate that a user's compute budget pays for."""
    scores = data.draw(cascades(count))
    samples = scores.correct.shape[1]
    gates = [simulate(scores, measure, gate)[:2] for gate in every_gate(scores)]
    budget = data.draw(st.sampled_from(sorted({cost for cost, _ in gates})))
    found, _ = search(scores, measure, max_macs=budget / samples)
    assert totals(scores, found) == min((g for g in gates if g[0] <= budget), key=lambda g: (-g[1], g[0]))


@quick
@given(scores=cascades(), measure=measures, data=st.data())
def test_outcome_equals_one_sample_at_a_time(scores: MemberScores, measure: str, data: st.DataObject) -> None:
    """Lost: every reported cost, exit rate and accuracy of a gate."""
    gate = tuple(data.draw(st.one_of(st.none(), st.integers(0, 8).map(lambda i: i / 8))) for _ in scores.values)
    found, samples = outcome(scores, measure, gate), scores.correct.shape[1]
    cost, right, exits = simulate(scores, measure, gate)
    assert (*totals(scores, found), found.thresholds) == (cost, right, gate)
    assert found.exit_rates == tuple(e / samples for e in exits)
    assert math.isclose(sum(found.exit_rates), 1)
    assert math.isclose(expected_macs(found.exit_rates, scores.macs), found.expected_macs)


@quick
@given(scores=cascades(), measure=measures, data=st.data())
def test_found_thresholds_do_what_search_says(scores: MemberScores, measure: str, data: st.DataObject) -> None:
    """Lost: a saved gate that behaves as it was reported; thresholds that sit on a value flip with noise."""
    found, curve = search(scores, measure, max_drop=data.draw(st.sampled_from([0.0, 12.5, 100.0])))
    for point in [found, *curve]:
        cost, right, _ = simulate(scores, measure, point.thresholds)
        assert totals(scores, point) == (cost, right)
        for limit, row in zip(point.thresholds, scores.values.tolist(), strict=True):
            ends = {0.0, 1.0} & {limit}
            if limit is not None and not ends:
                below, above = max(v for v in row if v < limit), min(v for v in row if v > limit)
                assert limit == (below + above) / 2


@quick
@given(scores=cascades(), measure=measures, data=st.data())
def test_a_larger_allowance_never_costs_more(scores: MemberScores, measure: str, data: st.DataObject) -> None:
    """Lost: trust in --max-drop: allowing more must not buy less."""
    small, large = sorted(data.draw(st.lists(st.floats(0, 100), min_size=2, max_size=2)))
    strict, loose = (search(scores, measure, max_drop=drop)[0] for drop in (small, large))
    assert loose.expected_macs <= strict.expected_macs
    full = outcome(scores, measure, [None] * len(scores.values))
    assert strict.top1 >= full.top1 - small - 1e-9
    assert strict.expected_macs <= full.expected_macs


@quick
@given(scores=cascades(levels=9), measure=measures, data=st.data())
def test_beyond_the_exact_range_no_change_of_one_exit_is_better(
    scores: MemberScores, measure: str, data: st.DataObject
) -> None:
    """Lost: gates of long cascades on large splits, where the grid alone is coarse."""
    samples, full = scores.correct.shape[1], int(scores.correct[-1].sum())
    by_drop = data.draw(st.booleans())
    lost = data.draw(st.integers(0, samples))
    budget = int(scores.macs[0]) + data.draw(st.integers(0, 100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_search, "_WORK", 1)
        patch.setattr(gate_search, "_CURVE_POINTS", 2)
        limit = {"max_drop": 100 * lost / samples} if by_drop else {"max_macs": float(budget)}
        found, curve = search(scores, measure, **limit)

    def loss(gate: Thresholds) -> tuple[float, float]:
        cost, right, _ = simulate(scores, measure, gate)
        if by_drop:
            return (cost, -right) if full - right <= lost else (math.inf, 0)
        return (-right, cost) if cost <= budget * samples else (math.inf, 0)

    reached = loss(found.thresholds)
    assert reached[0] < math.inf
    for member, row in enumerate(scores.values.tolist()):
        for choice in [None, *row]:
            gate = [*found.thresholds[:member], choice, *found.thresholds[member + 1 :]]
            assert reached <= loss(gate)
    assert curve[0].expected_macs == scores.macs[0]


def random_cascade(members: int, samples: int, seed: int = 0) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Logits after each member, as of a trained cascade: easy samples are correct early."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (samples,), generator=random)
    signal = torch.nn.functional.one_hot(labels, 5) * torch.rand(samples, 1, generator=random) * 4
    logits = torch.randn(members, samples, 5, generator=random) + signal
    return logits.cumsum(0), labels, tuple(1000 // (m + 1) for m in range(members))


def test_three_members_are_searched_exactly_at_realistic_size() -> None:
    """Lost: the optimum of an ordinary three-member cascade on some hundreds of images."""
    logits, labels, macs = random_cascade(3, 500)
    scores = MemberScores.from_logits(logits, labels, macs, "margin")
    correct, values = scores.correct.numpy(), scores.values.numpy()
    best: dict[int, int] = {}
    order = np.argsort(-values[1], kind="stable")
    for limit in [2.0, *values[0]]:
        stop = values[0] >= limit
        late = np.where(stop, macs[0], macs[0] + macs[1])[order]
        end = np.where(stop, macs[0], sum(macs))[order]
        right_late = np.where(stop, correct[0], correct[1])[order].astype(int)
        right_end = np.where(stop, correct[0], correct[2])[order].astype(int)
        for cost, right in zip(
            end.sum() + np.cumsum(np.append(0, late - end)),
            right_end.sum() + np.cumsum(np.append(0, right_late - right_end)),
            strict=True,
        ):
            best[int(right)] = min(best.get(int(right), 10**9), int(cost))
    full = int(correct[-1].sum())
    for drop in [0.0, 0.2, 1.0, 5.0]:
        found, curve = search(scores, "margin", max_drop=drop)
        needed = full - round(drop * 5)
        assert totals(scores, found)[0] == min(cost for right, cost in best.items() if right >= needed)
    assert found in curve
    assert len(curve) == 50
    assert totals(scores, curve[-1]) == (best[max(best)], max(best))


def test_long_cascades_stay_close_to_the_optimum() -> None:
    """Lost: most of the saving, when the search space is too large to try in full."""
    logits, labels, macs = random_cascade(4, 120)
    scores = MemberScores.from_logits(logits, labels, macs, "confidence")
    exact, _ = search(scores, "confidence", max_drop=2.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_search, "_WORK", 1_000_000)
        near, _ = search(scores, "confidence", max_drop=2.5)
    assert exact.expected_macs <= near.expected_macs <= 1.02 * exact.expected_macs


def test_large_splits_are_searched_within_limits() -> None:
    """Lost: calibration on an ImageNet-sized split that ends, and keeps to the accuracy asked for."""
    logits, labels, macs = random_cascade(4, 20_000)
    scores = MemberScores.from_logits(logits, labels, macs, "entropy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_search, "_WORK", 5_000_000)
        found, curve = search(scores, "entropy", max_drop=0.5)
    assert found in curve
    full = outcome(scores, "entropy", [None] * 3)
    assert full.top1 - found.top1 <= 0.5
    assert found.expected_macs < 0.9 * full.expected_macs
    assert len(curve) == 50


def test_curve_has_no_gap_where_the_last_points_are_expensive() -> None:
    """Lost: the trade-off around half a point, where nearly all of the cost is."""
    values = torch.linspace(1, 0, 1000)[None]
    correct = torch.ones(2, 1000, dtype=torch.bool)
    correct[0, 700:] = False  # the least certain are all put right,
    correct[0, 50:700:100] = False  # and few of the others
    _, curve = search(MemberScores(values, correct, (1, 9)), "confidence", max_drop=0.5)
    assert sum(point.expected_macs > 4 for point in curve) == 7
    assert len(curve) > 20


@pytest.mark.parametrize("measure", sorted(MEASURES))
def test_curve_is_a_pareto_front_with_its_ends(measure: str) -> None:
    """Lost: the trade-off that a user reads a threshold from."""
    logits, labels, macs = random_cascade(3, 400)
    scores = MemberScores.from_logits(logits, labels, macs, measure)
    found, curve = search(scores, measure, max_drop=0.5)
    assert found in curve
    assert len(curve) == 50
    for one, next_one in itertools.pairwise(curve):
        assert one.expected_macs < next_one.expected_macs
        assert one.top1 < next_one.top1
    assert curve[0] == outcome(scores, measure, [1.0 if measure == "entropy" else 0.0, None])
    assert curve[0].exit_rates == (1.0, 0.0, 0.0)
    assert curve[-1].top1 == search(scores, measure, max_macs=math.inf)[0].top1


def test_joint_search_beats_one_exit_at_a_time() -> None:
    """Lost: savings at later exits, when an early one uses the whole allowed drop for little."""
    values = torch.tensor([[0.75, 0.25, 0.25, 0.25, 0.25, 0.25], [0.25, 0.75, 0.5, 0.5, 0.5, 0.5]])
    correct = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()
    scores = MemberScores(values, correct, (1, 1, 10))
    lost = 1

    def cheapest(gates: list[tuple[float | None, ...]]) -> tuple[float | None, ...]:
        allowed = [g for g in gates if simulate(scores, "margin", g)[1] >= 6 - lost]
        return min(allowed, key=lambda g: simulate(scores, "margin", g)[0])

    first = cheapest([(t, None) for t in (None, 0.75, 0.25)])[0]
    one_by_one = cheapest([(first, t) for t in (None, 0.75, 0.5, 0.25)])
    found, _ = search(scores, "margin", max_drop=100 * lost / 6)
    assert simulate(scores, "margin", one_by_one)[0] == 61
    assert totals(scores, found) == (22, 5)


@pytest.mark.parametrize("measure", sorted(MEASURES))
def test_gate_stops_the_samples_that_calibration_counted(measure: str) -> None:
    """Lost: the expected cost, as soon as the cascade runs on real batches."""
    logits, labels, macs = random_cascade(3, 300, seed=1)
    scores = MemberScores.from_logits(logits, labels, macs, measure)
    found, _ = search(scores, measure, max_drop=1.0)
    gate = Gate.from_dict(json.loads(json.dumps(Gate(measure, found.thresholds).to_dict())))
    assert gate == Gate(measure, found.thresholds)
    index, exits, right = torch.arange(300), [], 0
    for member in range(3):
        *earlier, total = logits[: member + 1, index]
        stop = gate.stops(total, member, earlier) if member < 2 else torch.ones(len(index), dtype=torch.bool)
        exits.append(int(stop.sum()))
        right += int((total.argmax(-1) == labels[index])[stop].sum())
        index = index[~stop]
    assert found.exit_rates == tuple(e / 300 for e in exits)
    assert found.top1 == 100 * right / 300
    assert all(0 < e < 300 for e in exits)


def test_a_gate_without_threshold_or_certainty_stops_no_sample() -> None:
    """Lost: accuracy, if samples with broken logits left early; they must run every member."""
    broken = torch.tensor([[math.nan, 1.0], [9.0, 0.0]])
    assert Gate("margin", (None,)).stops(broken, 0).tolist() == [False, False]
    for measure in MEASURES:
        assert Gate(measure, (0.5,)).stops(broken, 0).tolist() == [False, True]


def naive(measure: str, row: list[float]) -> float:
    top = max(row)
    if measure == "energy":
        total = top + math.log(sum(math.exp(x - top) for x in row))
        return (1 + total / (1 + abs(total))) / 2
    weights = [math.exp(x - top) for x in row]
    p = sorted((w / sum(weights) for w in weights), reverse=True)
    if measure in ("confidence", "agreement"):
        return p[0]
    if measure == "margin":
        return p[0] - p[1]
    return -sum(x * math.log(x) for x in p if x > 0) / math.log(len(p))


@quick
@given(
    rows=st.integers(2, 6).flatmap(
        lambda k: st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=k, max_size=k), min_size=1, max_size=4)
    ),
    measure=measures,
)
def test_measures_equal_their_formulas(rows: list[list[float]], measure: str) -> None:
    """Lost: thresholds that mean what the documentation says."""
    found = MEASURES[measure].value(torch.tensor(rows))
    assert found.shape == (len(rows),)
    assert found.dtype == torch.float32
    for value, row in zip(found.tolist(), rows, strict=True):
        assert value == pytest.approx(naive(measure, row), abs=2e-6)
        assert 0 <= value <= 1


@pytest.mark.parametrize("measure", sorted(MEASURES))
@pytest.mark.parametrize("classes", [2, 1000])
def test_measures_stay_in_range_at_the_extremes(measure: str, classes: int) -> None:
    """Lost: samples that no threshold in [0, 1] can stop or hold, because rounding left the range."""
    sure, unsure = torch.zeros(1, classes), torch.full((1, classes), 7.0)
    sure[0, 1] = 1e30
    masked = torch.full((1, classes), -math.inf)
    masked[0, :2] = 0.0
    half = torch.randn(64, classes, generator=torch.Generator().manual_seed(0)).half()
    measured: Callable[[Tensor], Tensor] = MEASURES[measure].value
    least = {"margin": 0.0, "energy": naive("energy", unsure[0].tolist())}.get(measure, 1 / classes)
    top, flat = (0.0, 1.0) if measure == "entropy" else (1.0, least)
    assert measured(sure).item() == top
    assert measured(unsure).item() == pytest.approx(flat, abs=1e-6)
    for logits in (sure, unsure, masked, half, half * 1000):
        value = measured(logits)
        assert bool(((value >= 0) & (value <= 1)).all())
    assert torch.allclose(measured(half), torch.tensor([naive(measure, r) for r in half.tolist()]), atol=1e-5)


def test_agreement_is_the_mean_probability_of_the_predicted_class() -> None:
    """A member that contradicts all before it would count as sure as one that confirms them."""
    first, second = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 3.0, 0.0]])
    now = second.softmax(1)[0, 1]
    torch.testing.assert_close(MEASURES["agreement"].value(second), now[None])
    expected = (first.softmax(1)[0, 1] + now) / 2
    torch.testing.assert_close(MEASURES["agreement"].value(second, first), expected[None])
    logits, labels, macs = random_cascade(3, 50, seed=2)
    values = MemberScores.from_logits(logits, labels, macs, "agreement").values
    torch.testing.assert_close(values[1], MEASURES["agreement"].value(logits[1], logits[0]))


def test_the_options_know_every_measure() -> None:
    """A measure could not be chosen, or would be refused only after the logits were computed."""
    assert tuple(MEASURES) == options.MEASURES


@pytest.mark.parametrize("limit", [{"max_drop": 1.0}, {"max_macs": 4.0}])
def test_the_best_measure_is_that_of_the_best_gate(limit: dict[str, float]) -> None:
    """``auto`` would be worse than to try all by hand."""
    logits, labels, _ = random_cascade(2, 300, seed=3)
    measured = {name: MemberScores.from_logits(logits, labels, (3, 2), name) for name in MEASURES}
    found = {name: search(scores, name, **limit)[0] for name, scores in measured.items()}
    best = found[best_measure(measured, **limit)]
    if "max_drop" in limit:
        assert best.expected_macs == min(each.expected_macs for each in found.values())
    else:
        assert best.top1 == max(each.top1 for each in found.values())
    assert len({each.expected_macs for each in found.values()}) > 1, "this would test nothing"


def test_neighbouring_floats_are_told_apart() -> None:
    """Lost: a threshold between two values that have no float between them stops the wrong one."""
    above = float(np.nextafter(np.float32(0.5), np.float32(1)))
    for measure, values in [("confidence", [above, 0.5]), ("entropy", [0.5, above])]:
        scores = MemberScores(torch.tensor([values]), torch.tensor([[True, False], [True, True]]), (1, 1))
        assert search(scores, measure, max_drop=0)[0].exit_rates == (0.5, 0.5)


def test_drop_is_counted_in_whole_samples() -> None:
    """Lost: the last allowed mistake: 0.3 points of 1000 images are 3 images, not 2."""
    values = torch.linspace(1, 0.001, 1000)[None]
    correct = torch.ones(2, 1000, dtype=torch.bool)
    correct[0, [100, 200, 300, 400]] = False
    found, _ = search(MemberScores(values, correct, (1, 1)), "confidence", max_drop=0.3)
    assert found.top1 == 99.7
    assert found.exit_rates == (0.4, 0.6)


def test_a_cascade_of_one_has_nothing_to_choose() -> None:
    """Lost: calibration of a plain student, which scripts run before they add members."""
    logits, labels, _ = random_cascade(1, 40)
    scores = MemberScores.from_logits(logits, labels, torch.tensor([7]), "confidence")
    found, curve = search(scores, "confidence", max_drop=1.0)
    assert found == Outcome((), (1.0,), 7.0, 100 * int(scores.correct.sum()) / 40)
    assert curve == [found]


def test_mistakes_are_named() -> None:
    """Lost: a usable message; the user sees a traceback, or a gate that ignores the limit."""
    scores = MemberScores(torch.tensor([[0.5, 0.6]]), torch.ones(2, 2, dtype=torch.bool), (70, 30))
    for limits, words in [
        ({"max_macs": 69.9}, "70"),
        ({"max_macs": math.nan}, "70"),
        ({"max_drop": -0.1}, "-0.1"),
        ({"max_drop": 100.1}, "100.1"),
        ({"max_drop": math.nan}, "nan"),
        ({}, "xactly one"),
        ({"max_drop": 1.0, "max_macs": 80.0}, "xactly one"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            search(scores, "margin", **limits)
        assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="no measure 'sureness'"):
        search(scores, "sureness", max_drop=1.0)
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="outside"):
            Gate("margin", (bad,))
    with pytest.raises(UserError, match="2 thresholds for 2 members"):
        outcome(scores, "margin", (None, None))
    with pytest.raises(UserError, match="is not a gate"):
        Gate.from_dict({"measure": "margin"})
    with pytest.raises(UserError, match="no images"):
        MemberScores(torch.empty(1, 0), torch.empty(2, 0, dtype=torch.bool), (1, 1))
    with pytest.raises(UserError, match="two classes"):
        MEASURES["margin"].value(torch.ones(3, 1))


@pytest.mark.parametrize("member", [0, 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("measure", sorted(MEASURES))
def test_broken_logits_are_refused(member: int, bad: float, measure: str) -> None:
    """Lost: a diverged member is calibrated as if it were merely unsure."""
    logits, labels, macs = random_cascade(3, 10)
    logits[member, 3, 2] = bad
    with pytest.raises(UserError, match=f"member {member}"):
        MemberScores.from_logits(logits, labels, macs, measure)


@quick
@given(scores=cascades(), measure=measures)
def test_search_is_deterministic_and_leaves_threads_alone(scores: MemberScores, measure: str) -> None:
    """Lost: reruns that agree, and the speed of what runs after calibration."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    assert search(scores, measure, max_drop=10.0) == search(scores, measure, max_drop=10.0)
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


@quick
@given(scores=cascades(), measure=measures, data=st.data())
def test_a_sweep_tries_every_cut_of_its_exit(scores: MemberScores, measure: str, data: st.DataObject) -> None:
    """Lost: refinement that can take a threshold back; gates of long cascades stay worse than they need be."""
    front = gate_search._Front(scores, MEASURES[measure])
    cuts = [data.draw(st.integers(0, len(levels))) for levels in front.levels]
    member = data.draw(st.integers(0, len(cuts) - 1))
    front.sweep(torch.tensor(cuts), member)
    observed = [sorted(set(row.tolist()), reverse=measure != "entropy") for row in scores.values]
    limits = [values[cut - 1] if cut else None for values, cut in zip(observed, cuts, strict=True)]
    gates = [[*limits[:member], choice, *limits[member + 1 :]] for choice in [None, *observed[member]]]
    tried = {simulate(scores, measure, gate)[:2] for gate in [*gates, [None] * len(cuts)]}
    points = front.points().tolist()
    assert [(int(front.cost[right]), right) for right in points] == pareto(tried)


def test_the_grid_divides_the_samples_evenly() -> None:
    """Lost: good gates on large splits, if the coarse grid leaves out a region or one of its ends."""
    values = torch.stack([torch.arange(100) / 100, (torch.arange(100) > 9) / 1.0])
    front = gate_search._Front(
        MemberScores(values, torch.ones(3, 100, dtype=torch.bool), (1, 1, 1)), MEASURES["margin"]
    )
    assert front._quantiles(0, 5).tolist() == [0, 25, 50, 75, 100]
    assert front._quantiles(1, 2).tolist() == [0, 2]


def test_no_entropy_exceeds_one() -> None:
    """Lost: "all stop" at threshold 1.0, where rounding lifts an even distribution above it."""
    for classes in range(2, 300):
        assert MEASURES["entropy"].value(torch.zeros(1, classes)).item() <= 1
