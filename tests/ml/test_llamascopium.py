"""What Llamascopium writes, beside what test_formats.py says of every format."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.ml import formats
from tests.ml import foreign
from tests.ml.foreign import changed, refused

NORM = "dataset_average_activation_norm.blocks.15.hook_resid_post"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"act_fn": "batchtopk"}, "it has the activation 'batchtopk', which is not read here"),
        ({"act_fn": None}, "it has the activation '', which is not read here"),
        ({"sae_type": "lorsa"}, "sae_type 'lorsa' is not read here"),
        ({"norm_activation": "token-wise"}, "its inputs are normalised when it runs ('token-wise')"),
        ({"use_glu_encoder": True}, "it has a gated encoder"),
        ({"expansion_factor": None}, "expansion_factor is 'None'; it must be a finite number"),
        ({"expansion_factor": 1e308}, "expansion_factor is '1e+308'; it must be above 0, and 16,777,216 at most"),
        ({"d_model": 10**4000}, "; it must be a whole number from 1 to"),
        ({"expansion_factor": 3.5}, "W_E has the shape [12, 40], but the configuration says [12, 42]"),
        ({"hook_point_in": "", "hook_point_out": ""}, "lacks dataset_average_activation_norm."),
    ],
)
def test_what_is_not_read_or_cannot_be_is_named(tmp_path, config, said) -> None:
    foreign.llamascopium(tmp_path)
    assert said in refused(changed(tmp_path, **config))


@pytest.mark.parametrize(
    ("norm", "said"),
    [
        (torch.tensor(0.0), "is 0, which no mean norm can be"),
        (torch.tensor(-1.0), "is -1, which no mean norm can be"),
        (torch.tensor(float("nan")), "has 1 values that are not finite numbers"),
        (torch.tensor([1.0, 2.0]), "has the shape [2], not one number"),
    ],
)
def test_a_mean_norm_that_cannot_be_is_refused(tmp_path, norm, said) -> None:
    foreign.llamascopium(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    save_file(load_file(path) | {NORM: norm}, path)
    assert said in refused(tmp_path)


def test_a_norm_so_small_that_the_weights_overflow_is_refused(tmp_path) -> None:
    foreign.llamascopium(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    save_file(load_file(path) | {NORM: torch.tensor(1e-40)}, path)
    assert "With its scales taken in, W_enc" in refused(tmp_path)


def test_a_latent_that_writes_nothing_is_never_active(tmp_path) -> None:
    foreign.llamascopium(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    weights = load_file(path)
    weights["W_D"][3] = 0.0
    save_file(weights, path)
    sae, _ = formats.read(tmp_path)
    codes = sae.encode(100 * foreign.inputs())
    assert not codes[:, 3].any() and codes[:, 4].any()


def test_a_transcoder_names_the_site_that_it_writes(tmp_path) -> None:
    foreign.LETTERS["llamascopium-transcoder"](tmp_path)
    facts = formats.recognise(tmp_path)
    assert (facts.transcodes, facts.reads, facts.writes) == (
        True,
        ("blocks.15.hook_resid_post",),
        ("blocks.15.hook_mlp_out",),
    )


def test_thresholds_that_its_library_left_in_other_units_are_said(tmp_path) -> None:
    foreign.LETTERS["llamascopium-folded"](tmp_path / "folded")
    foreign.llamascopium(tmp_path / "plain")
    folded, plain = (" ".join(formats.recognise(tmp_path / name).notes) for name in ("folded", "plain"))
    assert "left the thresholds" in folded and "left the thresholds" not in plain


def test_the_place_tells_the_model(tmp_path) -> None:
    foreign.llamascopium_linear(tmp_path)
    place = "OpenMOSS-Team/Llama-Scope-R1-Distill/800M-Slimpajama-0-OpenR1-Math-220k/L15R"
    facts = formats.recognise(tmp_path, place)
    assert facts.model_name == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    assert facts.reads == ("blocks.15.hook_resid_post",)


def test_of_llama_scope_itself_transcoders_and_other_activations_are_not_read(tmp_path) -> None:
    for config, said in (
        ({"act_fn": "topk"}, "it has the activation 'topk', which is not read here"),
        ({"hook_point_out": "blocks.15.hook_resid_post"}, "it is a transcoder from blocks.15.hook_mlp_out"),
        ({"dataset_average_activation_norm": {"in": 0}}, "hyperparams.json: in is 0, which no mean norm can be"),
    ):
        foreign.llama_scope(tmp_path)
        assert said in refused(changed(tmp_path, **config))
