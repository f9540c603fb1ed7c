"""The names under which SAEs are exported mean the same tensors in TransformerLens: pytest -m peers tests/peers

Its version 4 wraps transformers' modules; up to version 3 it also has a forward pass of its own.
"""

from typing import Any

import pytest
import torch

from jobs.ml.saelens import hook_of
from jobs.ml.sites import capture_all, list_sites
from tests.ml.tiny import DECODERS, tiny_model

pytestmark = pytest.mark.peers

SAME = 3e-5
IDS = torch.arange(24).view(2, 12) * 7 % 300
SIZES = {"n_layers": 3, "d_model": 32, "n_heads": 4, "d_head": 8, "d_vocab": 300, "n_ctx": 64}
ROTARY = {"positional_embedding_type": "rotary", "rotary_adjacent_pairs": False, "d_mlp": 48}
OWN = {
    "gpt2": {"d_mlp": 128, "act_fn": "gelu_new", "normalization_type": "LN", "eps": 1e-5},
    "llama": {
        **ROTARY, "rotary_dim": 8, "gated_mlp": True, "act_fn": "silu", "normalization_type": "RMS", "final_rms": True,
        "n_key_value_heads": 2, "eps": 1e-6,
    },
    "gpt_neox": {
        **ROTARY, "rotary_dim": 2, "act_fn": "gelu", "normalization_type": "LN", "parallel_attn_mlp": True, "eps": 1e-5,
    },
}  # fmt: skip
CONVERSIONS = {"gpt2": "convert_gpt2_weights", "llama": "convert_llama_weights", "gpt_neox": "convert_neox_weights"}


def errors(model: Any, theirs: Any) -> dict[str, float]:
    """Of every listed site and of single heads: the largest difference, as a part of the largest value."""
    heads = [f"blocks.1.hook_z.{head}" for head in range(4)]
    ours = capture_all(model, [*(site.name for site in list_sites(model)), *heads], IDS)
    found_errors = {}
    for name, tensor in ours.items():
        hook = hook_of(name)
        found, head = theirs[hook["hook_name"]], hook["hook_head_index"]
        found = (found if head is None else found.view(2, 12, 4, -1)[:, :, head]).reshape(tensor.shape)
        found_errors[name] = ((found - tensor).abs().max() / tensor.abs().max()).item()
    return found_errors


@pytest.mark.parametrize("kind", DECODERS)
def test_every_exported_name_is_the_same_tensor_there(kind) -> None:
    sources = pytest.importorskip("transformer_lens.model_bridge.sources", reason="TransformerLens 4 is not installed")
    if not hasattr(sources, "build_bridge_from_module"):
        pytest.skip("TransformerLens 4 is not installed")
    model = tiny_model(kind, attn_implementation="eager")
    given = tiny_model(kind, attn_implementation="eager")  # the bridge changes the model that it is given
    bridge = sources.build_bridge_from_module(given, type(model).__name__, hf_config=model.config)
    differ = errors(model, bridge.run_with_cache(IDS)[1])
    assert len(differ) > 4 and all(error < SAME for error in differ.values()), differ


@pytest.mark.parametrize("kind", OWN)
def test_its_own_forward_pass_has_the_same_tensors_under_the_exported_names(kind) -> None:
    reason = "TransformerLens before 4 is not installed"
    lens = pytest.importorskip("transformer_lens", reason=reason)
    conversions = pytest.importorskip("transformer_lens.pretrained.weight_conversions", reason=reason)
    model = tiny_model(kind, attn_implementation="eager")
    config = lens.HookedTransformerConfig(**SIZES, **OWN[kind], dtype=torch.float32, device="cpu")
    theirs = lens.HookedTransformer(config)  # nothing is folded or centred
    theirs.load_state_dict(getattr(conversions, CONVERSIONS[kind])(model, config), strict=False)
    differ = errors(model, theirs.run_with_cache(IDS)[1])
    assert len(differ) > 4 and all(error < SAME for error in differ.values()), differ
