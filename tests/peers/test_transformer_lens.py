"""The names under which SAEs are exported mean the same tensors in TransformerLens: pytest -m peers tests/peers"""

import pytest
import torch

from jobs.ml.saelens import hook_of
from jobs.ml.sites import capture_all, list_sites
from tests.ml.tiny import DECODERS, tiny_model

pytestmark = pytest.mark.peers

IDS = torch.arange(24).view(2, 12) * 7 % 300
FAMILIES = [
    "gpt2",
    "llama",
    "gpt_neox",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "opt",
    "bloom",
]


@pytest.mark.parametrize("kind", DECODERS)
def test_every_exported_name_is_the_same_tensor_there(kind) -> None:
    sources = pytest.importorskip("transformer_lens.model_bridge.sources", reason="transformer_lens is not installed")
    model = tiny_model(kind, attn_implementation="eager")  # the bridge changes the model that it is given
    bridge = sources.build_bridge_from_module(
        tiny_model(kind, attn_implementation="eager"), type(model).__name__, hf_config=model.config
    )
    heads = [f"blocks.1.hook_z.{head}" for head in range(4)]
    ours = capture_all(model, [*(site.name for site in list_sites(model)), *heads], IDS)
    _, theirs = bridge.run_with_cache(IDS)
    for name, tensor in ours.items():
        hook = hook_of(name)
        found, head = theirs[hook["hook_name"]], hook["hook_head_index"]
        found = (found if head is None else found.view(2, 12, 4, -1)[:, :, head]).reshape(tensor.shape)
        assert torch.allclose(found, tensor, atol=1e-5 * tensor.abs().max().item()), name
