from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from jobs.ml.language_model import build_empty, load_model, read_architecture, weight_bytes
from jobs.ml.sites import capture_all, list_sites
from jobs.ml.structure import Group, describe
from tests.ml.tiny import DECODERS, ENCODERS, save_model, tiny_model

IDS = torch.arange(20).view(2, 10)


def count(group: Group) -> int:
    return 1 if group.first is None else group.last - group.first + 1


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_the_modules_told_hold_every_parameter_once(kind) -> None:
    model = tiny_model(kind)
    groups = describe(model)
    told = sum(count(group) * module.parameters for group in groups for module in group.modules)
    assert told == model.num_parameters()
    assert [group.title for group in groups][:2] == ["Embeddings", "Blocks 0–2"]


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_shapes_are_those_of_the_model_and_every_site_has_its_module(kind) -> None:
    model = tiny_model(kind)
    paths = set()
    for group in describe(model):
        for module in group.modules:
            path = f"{group.path}.{group.first}.{module.path}".strip(".") if group.path else module.path
            own = dict(model.get_submodule(path).named_parameters(recurse=False))
            assert module.shapes == {name: list(parameter.shape) for name, parameter in own.items()}
            paths.add(path)
    assert {site.path for site in list_sites(model) if site.name.startswith("blocks.0.")} <= paths


def test_blocks_that_differ_are_told_apart() -> None:
    model = tiny_model("llama", num_hidden_layers=4)
    model.model.layers[2].mlp.up_proj = torch.nn.Linear(32, 48)
    groups = [group.title for group in describe(model) if group.path]
    assert groups == ["Blocks 0–1", "Block 2", "Block 3"]


def test_eighty_blocks_take_as_many_lines_as_two() -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 300}
    few, many = (describe(build_empty(AutoConfig.for_model("llama", num_hidden_layers=n, **sizes))) for n in (2, 80))
    assert len(few) == len(many) and many[1].title == "Blocks 0–79"
    assert few[1].modules == many[1].modules


def test_a_tied_head_is_counted_with_the_embedding() -> None:
    head = describe(tiny_model("gpt2"))[-1]
    assert (head.title, head.modules[0].tied, head.modules[0].parameters) == ("Head", True, 0)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "bert"])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_what_is_said_to_be_made_small_is_what_bitsandbytes_makes_small(tmp_path, kind, dtype) -> None:
    save_model(tiny_model(kind), tmp_path)
    loaded = load_model(tmp_path, dtype=dtype)
    small = {name for name, module in loaded.named_modules() if type(module).__name__ in ("Linear8bitLt", "Linear4bit")}
    told = {
        f"{group.path}.{n}.{module.path}" if group.path else module.path
        for group in read_architecture(tmp_path).structure
        for module in group.modules
        if module.quantized
        for n in range(group.first or 0, (group.last or 0) + 1)
    }
    assert told == small != set()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "qwen3"])
def test_int4_gives_at_every_site_what_its_own_weights_give_in_full(tmp_path, kind) -> None:
    """Odd sizes too, which bitsandbytes' fast path on a CPU cannot take."""
    from bitsandbytes.functional import dequantize_4bit

    save_model(tiny_model(kind), tmp_path)
    small, full = load_model(tmp_path, dtype="int4"), load_model(tmp_path)
    for name, module in small.named_modules():
        if type(module).__name__ == "Linear4bit":
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            there = full.get_submodule(name).weight
            there.data = weight.T.contiguous() if type(full.get_submodule(name)).__name__ == "Conv1D" else weight
    errors = errors_at_every_site(small, full)
    assert errors and all(error < 0.06 for error in errors.values()), errors


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "bert"])
@pytest.mark.parametrize(("dtype", "within"), [("bfloat16", 0.03), ("float16", 0.005), ("int8", 0.06)])
def test_every_site_can_be_read_in_every_precision_and_is_finite(tmp_path, kind, dtype, within) -> None:
    save_model(tiny_model(kind), tmp_path)
    small, full = load_model(tmp_path, dtype=dtype), load_model(tmp_path)
    assert list_sites(small) == list_sites(full)
    errors = errors_at_every_site(small, full)
    assert len(errors) == len(list_sites(full)) > 0
    assert all(error < within for error in errors.values()), errors  # false of what is not finite


def errors_at_every_site(small, full) -> dict[str, float]:
    """Site → how far the one is from the other, as a part of the other."""
    sites = list_sites(full)
    found, expected = capture_all(small, sites, IDS), capture_all(full, sites, IDS)
    return {name: ((x.float() - expected[name]).norm() / expected[name].norm()).item() for name, x in found.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "int4"])
def test_weights_in_memory_are_counted_with_their_scales(tmp_path: Path, dtype) -> None:
    save_model(tiny_model("llama"), tmp_path)
    model = load_model(tmp_path, dtype=dtype)
    whole = {"float32": 4, "bfloat16": 2, "float16": 2}.get(dtype)
    if whole:
        assert weight_bytes(model) == whole * model.num_parameters()
    else:
        assert weight_bytes(model) > model.get_memory_footprint() - sum(b.nbytes for b in model.buffers())
