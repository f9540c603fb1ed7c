import json
import struct
import sys
from pathlib import Path

import pytest
import torch

from jobs.ml.blocks import UnsupportedModel
from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.language_model import load_model, read_architecture, verify_weights
from jobs.ml.sites import list_sites
from jobs.ml.tokenizer import load_tokenizer
from tests.ml.tiny import DECODERS, ENCODERS, save_model, tiny_model

IDS = torch.arange(20).view(2, 10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tiny_model("llama"), tmp_path)


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_the_config_alone_says_what_the_loaded_model_is(tmp_path, kind) -> None:
    model = tiny_model(kind)
    model.config.save_pretrained(tmp_path)
    described = read_architecture(tmp_path)
    assert described.model_type == kind
    assert described.class_name == type(model).__name__
    assert described.causal == (kind in DECODERS)
    assert (described.n_layers, described.d_model, described.n_heads, described.vocab_size) == (3, 32, 4, 300)
    assert described.context_length == 64
    assert described.n_parameters == sum(p.numel() for p in model.parameters())
    assert list(described.sites) == list_sites(model)


def test_a_saved_model_computes_the_same_after_loading(folder) -> None:
    loaded = load_model(folder)
    assert torch.equal(loaded(input_ids=IDS).logits, tiny_model("llama")(input_ids=IDS).logits)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_model_is_loaded_in_the_precision_asked_for(folder) -> None:
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16


def test_whole_weights_are_accepted_in_one_file_or_in_shards(folder, tmp_path_factory) -> None:
    verify_weights(folder)
    shards = tmp_path_factory.mktemp("shards")
    tiny_model("llama").save_pretrained(shards, max_shard_size="20KB")
    assert (shards / "model.safetensors.index.json").is_file()
    verify_weights(shards)


@pytest.mark.parametrize("lost", [1, 1000, 30_000])
def test_a_truncated_file_is_found_by_its_header(folder, lost) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-lost])
    with pytest.raises(CorruptData, match=r"model.safetensors is torn: [\d,]+ bytes where its header speaks of"):
        verify_weights(folder)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100, struct.pack("<Q", 4) + b"nope"])
def test_something_else_under_the_name_of_weights_is_found(folder, content) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CorruptData, match="model.safetensors"):
        verify_weights(folder)


def test_a_missing_shard_is_named(tmp_path) -> None:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CorruptData, match=f"{shard.name} is named in"):
        verify_weights(tmp_path)


def test_a_tensor_missing_from_its_shard_is_named(tmp_path) -> None:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    places["weight_map"]["model.extra.weight"] = sorted(places["weight_map"].values())[0]
    index.write_text(json.dumps(places))
    with pytest.raises(CorruptData, match=r"lacks 1 tensors .* such as model.extra.weight"):
        verify_weights(tmp_path)


def test_an_index_that_points_out_of_the_folder_is_refused(tmp_path) -> None:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../model.safetensors"}}))
    with pytest.raises(CorruptData, match="not in the folder"):
        verify_weights(tmp_path)


def test_pickles_are_refused_with_a_way_out(folder) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(Unusable, match=r"pytorch_model.bin alone") as refused:
        load_model(folder)
    assert "save_pretrained" in refused.value.hint


def test_weights_of_a_smaller_model_are_not_filled_up_with_random_ones(tmp_path) -> None:
    save_model(tiny_model("llama"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(CorruptData, match=r"lack \d+ tensors of LlamaForCausalLM, such as model.layers.3"):
        load_model(tmp_path)


def test_code_in_the_folder_is_never_run(tmp_path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    own = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    with pytest.raises(UnsupportedModel):
        read_architecture(tmp_path)
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "config", ["{", "[]", '{"model_type": "nothing"}', "{}", '{"model_type": "llama", "hidden_size": "x"}']
)
def test_a_config_that_is_none_is_unsupported(tmp_path, config) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UnsupportedModel):
        read_architecture(tmp_path)


def test_encoder_decoders_are_refused_by_name(tmp_path) -> None:
    from transformers import T5Config

    T5Config(d_model=32, num_layers=2).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="t5 is an encoder-decoder"):
        read_architecture(tmp_path)


@pytest.mark.parametrize("kind", ["fnet", "mamba"])
def test_a_family_of_another_build_is_described_with_its_embedding_as_the_only_listed_site(tmp_path, kind) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model(kind, hidden_size=32, num_hidden_layers=2, vocab_size=300).save_pretrained(tmp_path)
    described = read_architecture(tmp_path)
    assert (described.n_layers, described.d_model, described.n_heads) == (2, 32, None)
    assert [site.name for site in described.sites] == ["hook_embed"]


def test_a_model_that_reads_no_tokens_is_refused(tmp_path) -> None:
    from transformers import ViTConfig

    ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="says no vocab_size"):
        read_architecture(tmp_path)


def test_a_model_without_positions_has_no_context_limit(tmp_path) -> None:
    from transformers import BloomConfig

    BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=300).save_pretrained(tmp_path)
    assert read_architecture(tmp_path).context_length is None


def test_a_folder_without_config_is_said_to_be_none(tmp_path) -> None:
    with pytest.raises(CorruptData, match=r"no config.json"):
        read_architecture(tmp_path)


def test_a_missing_or_damaged_tokenizer_is_said_to_be_so(folder) -> None:
    assert load_tokenizer(folder)("the cat").input_ids
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptData, match="no tokenizer that can be read"):
        load_tokenizer(folder)


def test_roberta_has_fewer_positions_than_embeddings(tmp_path) -> None:
    from transformers import RobertaConfig

    RobertaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=514,
        vocab_size=300, architectures=["RobertaModel"],
    ).save_pretrained(tmp_path)  # fmt: skip
    assert read_architecture(tmp_path).context_length == 512
