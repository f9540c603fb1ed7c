from dataclasses import replace

import pytest

from mistudio.measurements import Observation
from mistudio.memory import Fit, Need
from mistudio.models.language_model import AUTO
from mistudio.recommend import PURPOSES, Candidate, recommend

DTYPES = ("float32", "bfloat16", "int4")


def seen(speed, *, job=1, dtype="float32", rows=4, purpose="forward", **fields):
    known = {"device": "GPU", "context_length": 128, "tokens": 1000, "tokens_per_second": speed}
    return Observation(job=job, purpose=purpose, dtype=dtype, rows=rows, **{**known, **fields})


def failed(job, dtype="float32", code="OUT_OF_MEMORY"):
    return Observation(job=job, purpose="train", dtype=dtype, error=code)


def candidate(name="small", key=1, size=1_000_000, found=(), fits="fits", **fields):
    needs = [Need(dtype, dtype, 100, None, [Fit("CPU", fits)]) for dtype in DTYPES]
    given = Candidate(key, name, size, causal=True, refusal="", needs=needs, seen=list(found))
    return replace(given, **fields)


def ask(*candidates, purpose="train", tokens=1_000_000, seconds=3600.0, devices=()):
    return recommend(purpose, list(candidates), list(devices), tokens, seconds)


def test_without_measurements_nothing_is_recommended_and_it_says_what_was_not_measured():
    found = ask(candidate())
    assert found.best is None and not found.others
    assert {out.dtype for out in found.unmeasured} == set(DTYPES)


def test_the_largest_model_that_is_fast_enough_is_taken():
    small, large = candidate(found=[seen(9000)]), candidate("large", 2, 10**9, [seen(500)])
    found = ask(small, large)
    assert (found.best.name, [option.name for option in found.others]) == ("large", ["small"])
    assert found.best.reasons[0] == "The largest of 2 models that read 1,000,000 tokens in the time."
    assert ask(small, large, seconds=60 * 10).best.name == "small"


def test_when_none_is_fast_enough_the_fastest_is_taken_and_that_is_said():
    found = ask(candidate(found=[seen(9)]), candidate("large", 2, 10**9, [seen(5)]))
    assert found.best.name == "small" and found.best.reasons[0].startswith("None of the measured ones")


def test_of_the_precisions_that_are_fast_enough_the_most_exact_is_taken():
    model = candidate(found=[seen(400), seen(900, dtype="bfloat16"), seen(2000, dtype="int4")])
    assert ask(model).best.dtype == "float32"
    assert ask(model, seconds=1500).best.dtype == "bfloat16"


def test_the_batch_with_the_highest_median_is_taken_with_its_observations():
    model = candidate(found=[seen(300, rows=1), *(seen(speed, rows=16) for speed in (500, 700, 900))])
    best = ask(model).best
    assert (best.rows, best.tokens_per_second, best.low, best.high, best.n) == (16, 700, 500, 900, 3)


def test_measurements_of_the_purpose_count_before_those_of_forward_passes():
    model = candidate(found=[seen(9000), seen(300, purpose="train")])
    assert ask(model).best.tokens_per_second == 300
    assert ask(model, purpose="scan").best.tokens_per_second == 9000


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"refusal": "The language model “small” is quarantined: x."}, "quarantined"),
        ({"causal": False}, "does not predict the next token"),
        ({"needs": [Need("float32", "float32", 9, None, [Fit("CPU", "no")])]}, "do not fit"),
        ({"seen": [seen(900), failed(2)]}, "Failed 1 of 2 times: OUT_OF_MEMORY."),
        ({"seen": [seen(900, finite=False)]}, "not finite"),
    ],
)
def test_what_is_excluded_is_named_with_the_reason(change, why):
    found = ask(replace(candidate(found=[seen(900)]), **change), purpose="steer")
    assert found.best is None
    assert why in found.excluded[0].why


def test_one_failure_among_many_runs_excludes_nothing():
    model = candidate(found=[failed(9), *(seen(900, job=n) for n in range(4))])
    assert ask(model).best.dtype == "float32"


def test_only_the_device_asked_for_counts():
    model = candidate(found=[seen(900), seen(50, device="CPU, 2 threads")])
    assert ask(model, devices=["CPU, 2 threads"]).best.tokens_per_second == 50
    assert ask(model, devices=["another"]).best is None


@pytest.mark.parametrize("purpose", PURPOSES)
def test_the_same_facts_in_another_order_give_the_same_answer(purpose):
    rows = [candidate(f"m{n}", n, 1000, [seen(900), seen(900, rows=8), seen(700, dtype="int4")]) for n in range(4)]
    turned = [replace(row, seen=row.seen[::-1]) for row in rows[::-1]]
    one, two = ask(*rows, purpose=purpose), ask(*turned, purpose=purpose)
    assert one.best and (one.best, one.others) == (two.best, two.others)


def test_failures_before_a_precision_was_settled_count_for_none_and_are_told():
    model = candidate(found=[seen(900), failed(2, AUTO), failed(3, AUTO)])
    found = ask(model)
    assert found.best.dtype == "float32" and not found.excluded
    said = "It also failed 2 times before a precision was settled: OUT_OF_MEMORY."
    assert found.best.reasons[-1] == said
    assert {out.why for out in found.unmeasured} == {f"Not measured on this machine. {said}"}
