import numpy as np
import pytest

from jobs.outcome import Outcome, outcome_path, plain, read_outcome, write_outcome


def test_results_become_plain_json_for_any_database():
    given = {
        "loss": float("nan"),
        "big": float("inf"),
        "n": np.int64(3),
        "x": np.float32(0.5),
        "bad": np.float64("nan"),
        1: (1, "a\0b"),
        "name": "caf\udce9.txt",
        "set": {1},
        "yes": True,
        "none": None,
    }
    expected = {
        "loss": None,
        "big": None,
        "n": 3,
        "x": 0.5,
        "bad": None,
        "1": [1, "a␀b"],
        "name": "caf\\udce9.txt",
        "yes": True,
        "none": None,
    }
    assert plain(given) == {**expected, "set": "{1}"}


@pytest.mark.django_db
def test_an_outcome_counts_for_its_own_attempt_alone(row):
    job = row(attempt=2)
    job.folder.mkdir(parents=True)
    write_outcome(job, Outcome(2, "succeeded", result={"n": 1}))
    assert read_outcome(job) == Outcome(2, "succeeded", result={"n": 1})
    job.attempt = 3
    assert read_outcome(job) is None


@pytest.mark.django_db
@pytest.mark.parametrize("text", ["", "{", "[]", '{"attempt": 1}', '{"attempt": 1, "how": "failed", "more": 1}'])
def test_a_torn_or_foreign_outcome_is_none(row, text):
    job = row(attempt=1)
    job.folder.mkdir(parents=True)
    outcome_path(job).write_text(text)
    assert read_outcome(job) is None
