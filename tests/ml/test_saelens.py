import json

import pytest
import torch

from jobs.ml import store
from jobs.ml.architectures import build
from jobs.ml.saelens import load_sae, save_sae, sites_of
from tests.ml.test_architectures import B, D, K, M, trained_like


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_an_sae_computes_the_same_after_saving_and_loading(tmp_path, architecture) -> None:
    sae = trained_like(architecture).folded(2.0)
    save_sae(sae, tmp_path / "sae", reads=["blocks.3.hook_resid_post"], model_name="gpt2")
    loaded = load_sae(tmp_path / "sae")
    x = torch.randn(B, D)
    assert torch.equal(loaded(x), sae(x))
    assert torch.equal(loaded.encode(x), sae.encode(x))
    assert sites_of(tmp_path / "sae") == (["blocks.3.hook_resid_post"], [])


def test_the_files_are_laid_out_as_saelens_reads_them(tmp_path) -> None:
    save_sae(
        trained_like("topk").folded(), tmp_path / "sae", reads=["blocks.3.hook_z"], model_name="gpt2", context_size=128
    )
    assert sorted(path.name for path in (tmp_path / "sae").iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    shapes = {
        name: array.shape for name, array in store.read_tensors(tmp_path / "sae" / "sae_weights.safetensors").items()
    }
    assert shapes == {"W_enc": (D, M), "W_dec": (M, D), "b_enc": (M,), "b_dec": (D,)}
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    metadata = config.pop("metadata")
    assert config == {
        "architecture": "topk", "d_in": D, "d_sae": M, "k": K, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "hook_z",
        "rescale_acts_by_decoder_norm": False,
    }  # fmt: skip
    assert metadata["hook_name"] == "blocks.3.attn.hook_z"
    assert metadata["sae_lens_version"].startswith("6.")
    assert (metadata["model_name"], metadata["context_size"]) == ("gpt2", 128)


@pytest.mark.parametrize(
    ("site", "hook", "head", "shape"),
    [
        ("hook_embed", "hook_embed", None, "none"),
        ("blocks.3.hook_resid_mid", "blocks.3.hook_resid_mid", None, "none"),
        ("blocks.3.mlp.hook_post", "blocks.3.mlp.hook_post", None, "none"),
        ("blocks.3.hook_z", "blocks.3.attn.hook_z", None, "hook_z"),
        ("blocks.3.hook_z.11", "blocks.3.attn.hook_z", 11, "none"),
        ("module:model.layers.3.mlp.up_proj", "model.layers.3.mlp.up_proj", None, "none"),
        ("module:model.layers.3.mlp:input", "module:model.layers.3.mlp:input", None, "none"),
    ],
)
def test_a_site_goes_by_the_name_that_the_peers_have_for_it_and_comes_back(tmp_path, site, hook, head, shape) -> None:
    save_sae(trained_like("topk").folded(), tmp_path / "sae", reads=[site])
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    metadata = config["metadata"]
    assert (metadata["hook_name"], metadata["hook_head_index"]) == (hook, head)
    assert config["reshape_activations"] == shape
    assert ("model_class_name" in metadata) == (site.startswith("module:") and hook != site)
    assert sites_of(tmp_path / "sae") == ([site], [])


def test_the_peers_own_rules_read_our_weights_alike(tmp_path) -> None:
    """SAELens' TopK, by its documented formula: top k of the pre-activations, ReLU, decode."""
    sae = trained_like("topk").folded(3.0)
    save_sae(sae, tmp_path / "sae", reads=["blocks.0.hook_mlp_out"])
    w = {name: torch.tensor(a) for name, a in store.read_tensors(tmp_path / "sae" / "sae_weights.safetensors").items()}
    x = torch.randn(B, D)
    a = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    top = a.topk(K, dim=1)
    f = torch.zeros(B, M).scatter(1, top.indices, top.values.relu())
    assert torch.allclose(f @ w["W_dec"] + w["b_dec"], sae(x), atol=1e-4)


@pytest.mark.peers
@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_saelens_itself_loads_it_and_computes_the_same(tmp_path, architecture) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    sae = trained_like(architecture).folded(2.0)
    save_sae(sae, tmp_path / "sae", reads=["blocks.3.hook_resid_post"], model_name="gpt2")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    x = torch.randn(B, D)
    assert torch.allclose(theirs.encode(x), sae.encode(x), atol=1e-5)
    assert torch.allclose(theirs(x), sae(x), atol=1e-5)


def test_a_peers_sae_whose_norms_count_is_read_too(tmp_path) -> None:
    sae = trained_like("topk")
    save_sae(sae.folded(), tmp_path, reads=["x"])
    config = store.read_json(tmp_path / "cfg.json")
    store.write_json(tmp_path / "cfg.json", {**config, "rescale_acts_by_decoder_norm": True})
    arrays = {name: value.detach().numpy() for name, value in sae.state_dict().items()}
    store.write_tensors(tmp_path / "sae_weights.safetensors", {**arrays, "W_enc": arrays["W_enc"].T})
    x = torch.randn(B, D)
    assert torch.allclose(load_sae(tmp_path)(x), sae(x), atol=1e-5)


def test_only_folded_and_finite_weights_are_saved(tmp_path) -> None:
    with pytest.raises(ValueError, match="only a folded SAE"):
        save_sae(trained_like("topk"), tmp_path / "sae", reads=["x"])
    broken = trained_like("topk").folded()
    broken.b_enc.data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        save_sae(broken, tmp_path / "sae", reads=["x"])
    assert not (tmp_path / "sae").exists()


def test_saving_again_replaces_the_folder_as_a_whole(tmp_path) -> None:
    save_sae(trained_like("topk").folded(), tmp_path / "sae", reads=["x"])
    save_sae(build("standard", D, M).folded(), tmp_path / "sae", reads=["y"])
    assert load_sae(tmp_path / "sae").architecture == "standard"
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_what_is_no_sae_is_said_to_be_none(tmp_path) -> None:
    with pytest.raises(ValueError, match="no cfg.json"):
        load_sae(tmp_path)
