"""What the measurement of a model refuses, and what it leaves out."""

import pytest

from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds import measure_model
from jobs.kinds.measure_model import Params
from tests.ml.tiny import save_model, tiny_model


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"model_folder": "models/1"}, "model_folder"),
        ({"context_length": 1}, "context_length"),
        ({"rows": []}, "rows"),
        ({"rows": [4, 0]}, "rows"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_its_name(params, field):
    with pytest.raises(InvalidInput) as refused:
        Params(**{"model_folder": "/models/1", **params})
    assert refused.value.field == field


def test_a_pass_that_would_take_too_long_is_left_out_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure_model, "LONGEST_PASS", 0.0)
    folder = save_model(tiny_model("llama"), tmp_path / "tiny")
    params = Params(str(folder), context_length=8, rows=[2, 1], seconds=0.0)
    measured = measure_model.run(params, Context(1, 1, measure_model.STAGES))["measured"]
    assert list(measured["runs"]) == ["1"]
    assert "2 rows are left out: a pass would take" in capsys.readouterr().out
