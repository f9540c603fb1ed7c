import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.model_config import facts, foreign_code, known_types, parse, require_known


def test_the_model_types_are_those_of_the_installed_transformers():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert known_types() == set(CONFIG_MAPPING_NAMES)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma2", "bert", "opt"])
def test_facts_are_those_that_transformers_reads(kind):
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind)
    found = facts(json.loads(config.to_json_string()))
    assert (found.model_type, found.n_layers, found.d_model) == (kind, config.num_hidden_layers, config.hidden_size)
    assert (found.vocab_size, found.n_heads) == (config.vocab_size, config.num_attention_heads)


def test_the_language_model_inside_another_is_the_one_described():
    found = facts({"model_type": "gemma3", "text_config": {"hidden_size": 64, "num_hidden_layers": 2}})
    assert (found.model_type, found.d_model, found.n_layers) == ("gemma3", 64, 2)


@given(st.recursive(st.none() | st.integers() | st.text() | st.booleans(), lambda inner: st.lists(inner)))
def test_values_that_are_not_what_they_should_be_count_as_not_stated(value):
    found = facts(
        dict.fromkeys(("model_type", "architectures", "hidden_size", "n_layer", "dtype", "text_config"), value)
    )
    assert found.d_model is None or type(value) is int
    assert isinstance(found.class_name, str) and isinstance(found.model_type, str)


def test_what_is_no_object_is_corrupt():
    for text in ("{", "[]", "3", "[" * 100_000):
        with pytest.raises(CorruptData, match=r"config\.json"):
            parse(text)


@pytest.mark.parametrize(
    ("auto_map", "file"),
    [
        ({"AutoModel": "modeling_x.X"}, "modeling_x.py"),
        ({"AutoModel": "owner/name--modeling_x.X"}, "modeling_x.py"),
        ({"AutoTokenizer": ["tokenization_x.X", None]}, "tokenization_x.py"),
        ({}, ""),
        ("modeling_x.X", ""),
        ({"AutoModel": 3}, ""),
    ],
)
def test_the_program_of_a_repository_is_named(auto_map, file):
    assert foreign_code({"auto_map": auto_map}) == file


def test_a_family_that_is_known_needs_no_program():
    require_known({"model_type": "llama", "auto_map": {"AutoModel": "modeling_x.X"}})
    with pytest.raises(Unusable, match="no model_type"):
        require_known({})
