import json
import pickle
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.ml import formats
from jobs.ml.architectures import build
from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.formats import recognise
from jobs.ml.sae import Sae
from jobs.ml.saelens import save_sae
from jobs.ml.sites import capture, replaced
from tests.ml import foreign
from tests.ml.foreign import D, K, M, changed, difference, inputs, refused
from tests.ml.test_architectures import trained_like
from tests.ml.tiny import tiny_model

CLOSE = 1e-5
UNITS = {"saelens-topk", "saelens-flat-topk", "llamascopium-topk-plain"}  # those whose rows must keep their norms


@pytest.mark.parametrize("name", foreign.MADE)
def test_a_foreign_sae_computes_here_what_its_library_s_formula_says(tmp_path, name) -> None:
    compute = foreign.MADE[name](tmp_path / "sae")
    sae, facts = formats.read(tmp_path / "sae")
    x = inputs()
    codes, x_hat = compute(x)
    assert difference(sae(x), x_hat) < CLOSE
    assert torch.equal(sae.encode(x) != 0, codes != 0)
    assert (facts.d_in, facts.width, facts.format) == (D, M, name.partition("-")[0].removesuffix("_2"))


@pytest.mark.parametrize("name", foreign.MADE)
def test_a_foreign_sae_has_unit_decoder_rows_unless_other_latents_would_be_chosen(tmp_path, name) -> None:
    foreign.MADE[name](tmp_path / "sae")
    sae, facts = formats.read(tmp_path / "sae")
    assert sae.is_folded
    norms = sae.W_dec.norm(dim=1)
    assert torch.allclose(norms, torch.ones(M), atol=1e-5) == (name not in UNITS)
    assert any("stay as they are" in note for note in facts.notes) == (name in UNITS)


@pytest.mark.parametrize("name", foreign.MADE)
def test_what_a_foreign_sae_writes_steers_a_model(tmp_path, name) -> None:
    """The site moves by it; predictions, and what the SAE reads there, change."""
    foreign.MADE[name](tmp_path / "sae")
    sae, _ = formats.read(tmp_path / "sae")
    model, site = tiny_model("llama", hidden_size=D, num_attention_heads=2), "blocks.1.hook_resid_post"
    ids = torch.arange(16).view(2, 8)
    before, direction = capture(model, site, ids), sae.W_dec[3]
    with torch.no_grad(), replaced(model, site, lambda whole: whole + 50 * direction):
        steered, logits = capture(model, site, ids), model(ids).logits
    assert torch.allclose(steered, before + 50 * direction)
    assert not torch.allclose(logits, model(ids).logits, atol=1e-2)
    assert not torch.allclose(sae(steered[0]), sae(before[0]), atol=1e-2)


def test_a_folder_says_what_is_in_it_before_its_weights_are_read(tmp_path) -> None:
    foreign.saelens(tmp_path / "a", "topk")
    facts = recognise(tmp_path / "a")
    assert (facts.architecture, facts.k, facts.reads) == ("topk", K, ("blocks.3.hook_resid_post",))
    assert (facts.model_name, facts.dataset, facts.context_size) == ("gpt2", "pile", 128)
    foreign.flat(tmp_path / "b")
    assert recognise(tmp_path / "b").reads == ("blocks.3.hook_resid_pre",)
    foreign.dictionary_learning(tmp_path / "c")
    assert recognise(tmp_path / "c").reads == ("blocks.3.hook_resid_post",)
    foreign.llama_scope(tmp_path / "d")
    assert recognise(tmp_path / "d").reads == ("blocks.15.hook_mlp_out",)
    foreign.gemma_scope_2(tmp_path / "e")
    facts = recognise(tmp_path / "e")
    assert facts.reads == ("blocks.5.hook_resid_post",)
    assert facts.model_name == "google/gemma-3-270m", "which is its name on the hub; others end in -pt there"


@pytest.mark.parametrize(
    ("place", "site"),
    [
        ("google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82", "blocks.12.hook_resid_post"),
        ("google/gemma-scope-9b-it-mlp/layer_3/width_16k/average_l0_9", "blocks.3.hook_mlp_out"),
        ("google/gemma-scope-2b-pt-att/layer_0/width_16k/average_l0_9", "blocks.0.hook_z"),
        ("/embedding/layer_5_study/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_9", "blocks.3.hook_resid_post"),
        ("/somewhere/else", ""),
    ],
)
def test_of_gemma_scope_the_place_tells_the_site(tmp_path, place, site) -> None:
    foreign.gemma_scope(tmp_path)
    assert recognise(tmp_path, place).reads == ((site,) if site else ())


def test_of_gemma_scope_s_transcoders_the_place_tells_what_they_write(tmp_path) -> None:
    foreign.gemma_scope(tmp_path)
    facts = recognise(tmp_path, "google/gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_9")
    assert (facts.transcodes, facts.reads, facts.writes) == (True, (), ("blocks.3.hook_mlp_out",))


def test_of_gemma_scope_an_sae_of_embeddings_is_scaled(tmp_path) -> None:
    place = "google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"
    compute = foreign.gemma_scope(tmp_path, place)
    sae, facts = formats.read(tmp_path, place)
    assert facts.reads == ("hook_embed",)
    assert difference(sae(inputs()), compute(inputs())[1]) < CLOSE


def test_notes_are_for_people_and_change_no_number(tmp_path) -> None:
    place = "google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"
    foreign.gemma_scope(tmp_path / "a", place)
    foreign.MADE["saelens-flat-scaled"](tmp_path / "b")
    for name in ("a", "b"):
        facts = recognise(tmp_path / name, place)
        read = formats.module_of(facts.format).weights
        noted, silent = read(tmp_path / name, facts), read(tmp_path / name, replace(facts, notes=()))
        assert facts.notes and all(torch.equal(noted[key], silent[key]) for key in noted)


@pytest.mark.parametrize("place", ["/embedding-study/layer_3/width_4k", "/embedding/mine", "/transcoders/layer_3/x"])
def test_of_gemma_scope_words_elsewhere_in_the_path_change_nothing(tmp_path, place) -> None:
    compute = foreign.gemma_scope(tmp_path)
    sae, facts = formats.read(tmp_path, place)
    assert (facts.reads, facts.transcodes) == ((), False)
    assert difference(sae(inputs()), compute(inputs())[1]) < CLOSE


@pytest.mark.parametrize(
    ("hookpoint", "transcode", "reads", "writes"),
    [
        ("layers.10", False, ("blocks.10.hook_resid_post",), ()),
        ("h.3.mlp", False, ("blocks.3.hook_mlp_out",), ()),
        ("layers.3.mlp/seed1", True, (), ("blocks.3.hook_mlp_out",)),
        ("embed_tokens", False, ("hook_embed",), ()),
        ("unheard_of", False, (), ()),
    ],
)
def test_of_sparsify_the_folder_s_name_tells_the_site(tmp_path, hookpoint, transcode, reads, writes) -> None:
    foreign.sparsify(tmp_path / hookpoint, transcode)
    facts = recognise(tmp_path / hookpoint)
    assert (facts.reads, facts.writes) == (reads, writes)


def test_a_folder_above_one_sae_is_as_good_and_one_above_several_names_them(tmp_path) -> None:
    foreign.sparsify(tmp_path / "run/layers.1")
    assert formats.find(tmp_path) == tmp_path / "run/layers.1"
    foreign.sparsify(tmp_path / "run/layers.2")
    with pytest.raises(Unusable, match=r"2 SAEs here: run/layers\.1, run/layers\.2"):
        formats.find(tmp_path)


# ---- out and in again


def trained(architecture: str, **shape) -> Sae:
    torch.manual_seed(1)
    sae = build(architecture, D, M, k=K)
    sae = type(sae)(D, M, **sae.options(), **(sae.shape | shape))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
        for name, parameter in sae.named_parameters():
            if name == "threshold":
                parameter.abs_()
    if architecture in ("batchtopk", "matryoshka"):
        sae.threshold.fill_(0.7)
    return sae.folded(2.0)


WRITTEN = [
    (name, architecture)
    for name in formats.FORMATS
    for architecture in ("topk", "abstopk", "batchtopk", "matryoshka", "jumprelu", "standard", "gated", "p_anneal")
    if not formats.refusal(name, trained(architecture).architecture)
]


@pytest.mark.parametrize(("name", "architecture"), WRITTEN)
def test_an_sae_computes_the_same_after_it_was_written_and_read_in_a_format(tmp_path, name, architecture) -> None:
    sae = trained(architecture)
    formats.write(sae, tmp_path / "layers.3", name, reads=["blocks.3.hook_resid_post"], model_name="gpt2")
    place = "google/gemma-scope-2b-pt-res/layer_3" if name == "gemma_scope" else ""
    back, facts = formats.read(tmp_path / "layers.3", place)
    x = inputs()
    assert difference(back(x), sae(x)) < CLOSE
    assert difference(back.encode(x), sae.encode(x)) < CLOSE
    assert facts.reads == ("blocks.3.hook_resid_post",)


@pytest.mark.parametrize(
    "site", ["blocks.3.hook_z", "blocks.3.hook_z.1", "blocks.3.mlp.hook_post", "hook_embed", "module:model.norm:input"]
)
def test_dictionary_learning_s_configuration_keeps_the_name_of_any_site(tmp_path, site) -> None:
    formats.write(trained("topk"), tmp_path, "dictionary_learning", reads=[site])
    assert recognise(tmp_path).reads == (site,)


@pytest.mark.parametrize(
    ("named", "site"),
    [
        ({"submodule_name": "", "layer": 3}, "blocks.3.hook_resid_post"),
        ({"submodule_name": "model.layers.3.mlp", "layer": 3}, "blocks.3.hook_mlp_out"),
        ({"submodule_name": "model.layers.3.mlp.gate", "layer": 3}, ""),
    ],
)
def test_of_dictionary_learning_a_module_that_is_not_known_is_not_taken_for_its_layer(tmp_path, named, site) -> None:
    foreign.dictionary_learning(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(whole | {"trainer": whole["trainer"] | named}))
    assert recognise(tmp_path).reads == ((site,) if site else ())


@pytest.mark.parametrize(("name", "architecture"), [("sparsify", "topk"), ("saelens", "jumprelu")])
def test_a_transcoder_is_written_and_read_with_its_skip_connection(tmp_path, name, architecture) -> None:
    sae = trained(architecture, centred=False, skip=True)
    sites = {"reads": ["module:model.layers.3.mlp:input"], "writes": ["blocks.3.hook_mlp_out"]}
    formats.write(sae, tmp_path / "layers.3.mlp", name, **sites)
    back, facts = formats.read(tmp_path / "layers.3.mlp")
    assert facts.transcodes and facts.writes == ("blocks.3.hook_mlp_out",)
    assert difference(back(inputs()), sae(inputs())) < CLOSE


@pytest.mark.parametrize("name", ["saelens", "sparsify", "dictionary_learning"])
def test_rows_that_kept_their_norms_keep_them_on_the_way_out(tmp_path, name) -> None:
    compute = foreign.saelens(tmp_path / "there", "topk")
    sae, _ = formats.read(tmp_path / "there")
    formats.write(sae, tmp_path / "layers.3", name, reads=["blocks.3.hook_resid_post"])
    back, _ = formats.read(tmp_path / "layers.3")
    assert difference(back(inputs()), compute(inputs())[1]) < CLOSE


@pytest.mark.parametrize("name", ["crosscoder", "transcoder", "skip_transcoder"])
def test_what_no_peer_has_a_name_for_goes_between_two_studios(tmp_path, name) -> None:
    sae = trained_like(name).folded(2.0)
    sites = {
        "reads": ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"] if name == "crosscoder" else ["hook_embed"]
    }
    save_sae(sae, tmp_path / "sae", **sites, writes=[] if name == "crosscoder" else ["blocks.1.hook_mlp_out"])
    back, facts = formats.read(tmp_path / "sae")
    assert list(facts.reads) == sites["reads"] and facts.transcodes == (name != "crosscoder")
    assert difference(back(inputs()), sae(inputs())) < CLOSE
    assert "no " in formats.refusal("saelens", sae.architecture, transcodes=facts.transcodes)


def test_what_a_format_cannot_hold_is_refused_with_the_reason(tmp_path) -> None:
    assert formats.refusal("sparsify", "gated") == "sparsify has no gated."
    assert "sparsify has" in formats.refusal("saelens", "topk", transcodes=True)
    assert "not 9 from 12" in formats.refusal("sparsify", "topk", transcodes=True, d_in=12, d_out=9)
    assert "neither read nor written" in formats.refusal("llama_scope", "jumprelu", transcodes=True)
    assert formats.refusal("llama_scope", "topk") == "Llama Scope has no topk."
    with pytest.raises(Unusable, match="no place for the site"):
        formats.write(trained("standard"), tmp_path / "x", "gemma_scope", reads=["a"], writes=["b"])


def test_one_threshold_for_all_is_reached_by_the_norms_of_the_rows_where_any_can(tmp_path) -> None:
    sae = trained("jumprelu")
    assert sae.threshold.min() < sae.threshold.max()
    formats.write(sae, tmp_path / "sae", "llama_scope", reads=["blocks.3.hook_z"])
    config = json.loads((tmp_path / "sae/hyperparams.json").read_text())
    rows = load_file(tmp_path / "sae/checkpoints/final.safetensors")["decoder.weight"].norm(dim=0)
    assert torch.allclose(rows * config["jump_relu_threshold"], sae.threshold, rtol=1e-5)
    assert config["hook_point_in"] == "blocks.3.attn.hook_z"
    assert recognise(tmp_path / "sae").reads == ("blocks.3.hook_z",)
    sae.threshold.data[:3] = 0.0
    with pytest.raises(Unusable, match="3 of 40 latents have the threshold 0"):
        formats.write(sae, tmp_path / "sae", "llama_scope", reads=["hook_embed"])


# ---- files of which nothing good is to be expected


class Bomb:
    def __reduce__(self):
        return (print, ("it ran",))


def test_a_pickle_is_never_opened(tmp_path, capsys) -> None:
    foreign.dictionary_learning(tmp_path)
    torch.save({"encoder.weight": Bomb()}, tmp_path / "ae.pt")
    assert "could run code when opened; it was not opened" in refused(tmp_path)
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Bomb()))
    assert "bare pickle; it was not opened" in refused(tmp_path)
    (tmp_path / "ae.pt").unlink()
    (tmp_path / "sae.pkl").write_bytes(b"x")
    assert "sae.pkl, which can run code when opened" in refused(tmp_path)
    assert "it ran" not in capsys.readouterr().out


def test_a_pickled_array_in_an_npz_is_never_opened(tmp_path, capsys) -> None:
    np.savez(tmp_path / "params.npz", w_enc=np.array([Bomb()], dtype=object))
    assert "w_enc in params.npz is a pickled object" in refused(tmp_path)
    assert "it ran" not in capsys.readouterr().out


def test_an_npz_with_paths_that_lead_elsewhere_is_refused(tmp_path) -> None:
    foreign.gemma_scope(tmp_path)
    with zipfile.ZipFile(tmp_path / "params.npz", "a") as archive:
        archive.writestr("../../evil.npy", b"x")
    assert "'../../evil.npy', which is no array of an SAE" in refused(tmp_path)


def test_an_npz_that_unfolds_is_refused(tmp_path) -> None:
    np.savez_compressed(tmp_path / "params.npz", w_enc=np.zeros((4000, 4000)), w_dec=np.zeros((4000, 4000)))
    assert "unfolds from" in refused(tmp_path)


def test_an_npz_with_whole_numbers_is_refused(tmp_path) -> None:
    np.savez(tmp_path / "params.npz", w_enc=np.zeros((3, 3), dtype=int))
    assert "holds int64, not floating-point numbers" in refused(tmp_path)


def change(folder, name, value) -> None:
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors[name] = value(tensors.get(name))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "sae_weights.safetensors")


def test_numbers_that_are_not_finite_are_refused_with_their_number(tmp_path) -> None:
    foreign.saelens(tmp_path)
    change(tmp_path, "b_enc", lambda b: b / (torch.arange(M) > 2))
    assert "b_enc has 3 values that are not finite numbers" in refused(tmp_path)


def test_shapes_that_the_configuration_does_not_say_are_refused(tmp_path) -> None:
    foreign.saelens(tmp_path)
    change(tmp_path, "W_dec", lambda w: w[:-1])
    assert "W_dec has the shape [39, 12], but the configuration says [40, 12]" in refused(tmp_path)


def test_tensors_too_many_or_too_few_are_refused(tmp_path) -> None:
    foreign.saelens(tmp_path)
    change(tmp_path, "W_more", lambda _: torch.zeros(3))
    assert "has W_more beside" in refused(tmp_path)
    foreign.saelens(tmp_path, "gated")
    assert "lacks b_enc, threshold" in refused(changed(tmp_path, architecture="jumprelu"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda raw: struct.pack("<Q", 2**40) + raw[8:], "says that its header has 1,099,511,627,776 bytes"),
        (lambda raw: raw[:-1], "does not hold the bytes that its header says"),
        (lambda raw: raw[:4], "no safetensors file"),
        (lambda raw: raw[:8] + b"}" + raw[9:], "header that cannot be read"),
        (lambda raw: raw.replace(b'"F32"', b'"F99"'), "header that cannot be read"),
        (lambda raw: raw.replace(b"[40,12]", b"[40,99]"), "header that cannot be read"),
    ],
)
def test_a_safetensors_file_that_lies_about_itself_is_refused(tmp_path, spoil, said) -> None:
    foreign.saelens(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    assert said in refused(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"d_in": "many"}, "d_in is 'many'; it must be a whole number from 1"),
        ({"d_in": 2**40}, "d_in is 1,099,511,627,776, not 1 to 1,048,576"),
        ({"d_sae": True}, "d_sae is 'True'; it must be a whole number"),
        ({"architecture": "temporal"}, "'temporal' is no architecture that is read here. Read are standard"),
        ({"normalize_activations": "layer_norm"}, "its inputs are normalised when it runs (layer_norm)"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input is 'yes'; it must be true or false"),
        ({"metadata": {"sae_lens_version": "6.1.0", "hook_name": 3}}, "hook_name is '3'; it must be a text"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_with_its_field(tmp_path, config, said) -> None:
    foreign.saelens(tmp_path, **config)
    assert said in refused(tmp_path)


def test_more_active_latents_than_there_are_is_refused(tmp_path) -> None:
    foreign.saelens(tmp_path, "topk", k=99)
    assert "k is 99, but there are 40 latents" in refused(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"d_in": NaN'])
def test_a_configuration_that_is_no_object_is_refused(tmp_path, text) -> None:
    foreign.saelens(tmp_path)
    (tmp_path / "cfg.json").write_text(text)
    assert "cfg.json" in refused(tmp_path, CorruptData)


def test_a_torch_file_larger_than_its_configuration_is_refused(tmp_path) -> None:
    foreign.dictionary_learning(tmp_path)
    weights = torch.load(tmp_path / "ae.pt")
    torch.save(weights | {"b_dec": torch.zeros(10**6)}, tmp_path / "ae.pt")
    assert "the SAE of its configuration has" in refused(tmp_path)
    torch.save({"ae": weights, "optimizer": {}}, tmp_path / "ae.pt")
    assert "a checkpoint of a trainer" in refused(tmp_path)


def test_a_link_is_not_followed(tmp_path) -> None:
    foreign.saelens(tmp_path / "real")
    (tmp_path / "sae").mkdir()
    for name in ("cfg.json", "sae_weights.safetensors"):
        (tmp_path / "sae" / name).symlink_to(tmp_path / "real" / name)
    assert "No known SAE is here" in refused(tmp_path / "sae")
