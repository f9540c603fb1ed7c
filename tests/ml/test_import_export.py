"""The kinds that bring SAEs in and out, from files to files, with the real context and no database."""

import shutil
import tarfile
import threading
import zipfile
from dataclasses import asdict

import pytest
import torch

from jobs.context import Context
from jobs.errors import Cancelled, InvalidInput
from jobs.kinds import export_sae, import_sae
from jobs.kinds.export_sae import Params
from jobs.ml import formats, hub_push, store
from jobs.ml.errors import Unusable
from jobs.ml.formats import certify
from jobs.ml.formats.card import card
from jobs.ml.formats.hooks import module_that_puts_out, site_of_module
from jobs.ml.saelens import load_sae, save_sae, sites_of
from jobs.ml.sites import capture_all, list_sites
from tests.ml import foreign
from tests.ml.foreign import D, M, difference, inputs
from tests.ml.test_formats import CLOSE, trained
from tests.ml.tiny import tiny_model

SITE = "blocks.3.hook_resid_post"


@pytest.fixture(autouse=True)
def without_peers(monkeypatch) -> None:
    monkeypatch.delenv(certify.PEERS, raising=False)


def bring(source, home, **params):
    own = import_sae.Params(str(source), str(home / "made/sae"), **params)
    return import_sae.run(own, Context(1, 1, import_sae.STAGES))


def archived(folder, path):
    if path.suffix == ".zip":
        shutil.make_archive(str(path.with_suffix("")), "zip", folder)
    else:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(folder, ".")
    return path


@pytest.mark.parametrize("form", ["folder", "sae.zip", "sae.tar.gz"])
@pytest.mark.parametrize("name", ["saelens-jumprelu", "dictionary_learning-BatchTopKSAE", "llama_scope"])
def test_an_sae_of_another_library_becomes_a_folder_as_ours_are(tmp_path, form, name) -> None:
    compute = foreign.MADE[name](tmp_path / "there/inner")
    source = tmp_path / "there" if form == "folder" else archived(tmp_path / "there", tmp_path / form)
    result = bring(source, tmp_path)
    sae = load_sae(tmp_path / "made/sae")
    assert difference(sae(inputs()), compute(inputs())[1]) < CLOSE
    assert (result["d_in"], result["width"], result["path"]) == (D, M, "inner")
    assert sites_of(tmp_path / "made/sae")[0] == result["reads"]
    manifest = store.read_manifest(tmp_path / "made/sae")
    assert set(manifest["files"]) == {"cfg.json", "sae_weights.safetensors"}
    assert not (tmp_path / "made/import").exists()


@pytest.mark.parametrize("path", [".cache/x", "v1."])
def test_dots_of_a_folder_s_name_are_its_own(tmp_path, path) -> None:
    foreign.saelens(tmp_path / "there" / path)
    assert bring(tmp_path / "there", tmp_path)["path"] == path
    foreign.saelens(tmp_path / "top")
    assert bring(tmp_path / "top", tmp_path)["path"] == ""


@pytest.mark.parametrize("id", ["alice", "alice/a..b", "alice/a--b", "alice/sæ", f"alice/{'x' * 97}", "a/b/c"])
def test_what_is_no_id_of_the_hub_is_no_repository_and_on_no_card(id) -> None:
    with pytest.raises(InvalidInput, match="no id of the hub") as caught:
        Params("/sae", "/out", "saelens", repository=id)
    assert caught.value.field == "repository"
    assert "base_model" not in card("saelens", "SAELens", "", {"model": id}, None)


def test_the_chosen_site_counts_more_than_what_the_files_say(tmp_path) -> None:
    foreign.saelens(tmp_path / "there")
    assert bring(tmp_path / "there", tmp_path, reads=("blocks.1.hook_mlp_out",))["reads"] == ["blocks.1.hook_mlp_out"]


def test_without_any_word_of_its_site_it_is_refused(tmp_path) -> None:
    foreign.gemma_scope(tmp_path / "there")
    with pytest.raises(InvalidInput, match="do not say which site") as caught:
        bring(tmp_path / "there", tmp_path)
    assert caught.value.field == "site"


def test_a_site_of_another_width_or_model_is_refused(tmp_path) -> None:
    foreign.saelens(tmp_path / "there")
    with pytest.raises(InvalidInput, match="reads 12 dimensions, but blocks.3.hook_resid_post has 768"):
        bring(tmp_path / "there", tmp_path, widths={SITE: 768})
    with pytest.raises(InvalidInput, match="which this model does not have"):
        bring(tmp_path / "there", tmp_path, widths={"hook_embed": D})


def test_a_transcoder_must_be_told_what_it_rebuilds_and_an_autoencoder_must_not(tmp_path) -> None:
    foreign.sparsify(tmp_path / "there", transcode=True)
    with pytest.raises(InvalidInput, match="Its files do not say which site"):
        bring(tmp_path / "there", tmp_path)
    reads = ("module:model.layers.3.mlp:input",)
    with pytest.raises(InvalidInput, match="what it rebuilds"):
        bring(tmp_path / "there", tmp_path, reads=reads)
    result = bring(tmp_path / "there", tmp_path, reads=reads, writes=("blocks.3.hook_mlp_out",))
    assert (result["reads"], result["writes"]) == (list(reads), ["blocks.3.hook_mlp_out"])
    foreign.saelens(tmp_path / "plain")
    with pytest.raises(InvalidInput, match="It rebuilds what it reads"):
        bring(tmp_path / "plain", tmp_path, writes=(SITE,))


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b"])
def test_a_path_out_of_the_source_is_refused(tmp_path, path) -> None:
    with pytest.raises(InvalidInput, match="leads out of the source"):
        bring(tmp_path, tmp_path, path=path)


def test_an_archive_with_a_path_out_of_it_is_refused(tmp_path) -> None:
    foreign.saelens(tmp_path / "there")
    source = archived(tmp_path / "there", tmp_path / "evil.zip")
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("../../cfg.json", "{}")
    with pytest.raises(Unusable, match="a path that leads out of the archive"):
        bring(source, tmp_path)


def test_several_saes_are_named_and_the_path_chooses(tmp_path) -> None:
    for layer in (1, 2):
        foreign.sparsify(tmp_path / f"there/layers.{layer}")
    with pytest.raises(Unusable, match=r"2 SAEs here: layers\.1, layers\.2"):
        bring(tmp_path / "there", tmp_path)
    assert bring(tmp_path / "there", tmp_path, path="layers.2")["reads"] == ["blocks.2.hook_resid_post"]


def test_what_is_cancelled_leaves_no_sae(tmp_path) -> None:
    foreign.saelens(tmp_path / "there")
    context = Context(1, 1, import_sae.STAGES)
    context.wished = "cancel"
    with pytest.raises(Cancelled):
        import_sae.run(import_sae.Params(str(tmp_path / "there"), str(tmp_path / "made/sae")), context)
    assert not (tmp_path / "made/sae").exists()


# ---- from the hub


@pytest.fixture
def stored(hub, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    foreign.MADE["gemma_scope"](tmp_path / "repo")
    place = "layer_3/width_16k/average_l0_9"
    files = {
        f"{place}/params.npz": (tmp_path / "repo/params.npz").read_bytes(),
        "README.md": b"---\nlicense: cc-by-4.0\n---\n",
    }
    return hub.add("model", "google/gemma-scope-2b-pt-res", files)


def test_from_the_hub_it_is_read_at_a_commit_and_its_site_from_its_place(stored, tmp_path) -> None:
    result = bring("google/gemma-scope-2b-pt-res", tmp_path, path="layer_3")
    assert (result["commit"], result["licence"]) == (stored.commit, "cc-by-4.0")
    assert result["reads"] == ["blocks.3.hook_resid_post"]
    assert result["path"] == "layer_3/width_16k/average_l0_9"


@pytest.mark.parametrize("form", ["folder", "sae.zip", "owner/saes"])
def test_checkpoints_below_the_sae_are_left_where_they_are(hub, monkeypatch, tmp_path, form) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    there = tmp_path / "there"
    foreign.saelens(there)
    foreign.saelens(there / "checkpoint_1")
    files = {path.relative_to(there).as_posix(): path.read_bytes() for path in there.rglob("*.*")}
    hub.add("model", "owner/saes", files)
    source = form if "/" in form else there if form == "folder" else archived(there, tmp_path / form)
    ctx = Context(1, 1, import_sae.STAGES)
    import_sae.bring(import_sae.Params(str(source), str(tmp_path / "made/sae")), tmp_path / "room", ctx)
    brought = {path.relative_to(tmp_path / "room/files").as_posix() for path in (tmp_path / "room/files").rglob("*")}
    assert brought == {"cfg.json", "sae_weights.safetensors"}


def test_an_interrupted_download_goes_on_at_the_commit_it_began_with(stored, hub, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("jobs.ml.hub.FIRST_WAIT", 0.01)
    hub.fault("params.npz", breaks_after=2000)
    hub.fault("params.npz", status=403)
    with pytest.raises(OSError):
        bring("google/gemma-scope-2b-pt-res", tmp_path)
    begun = stored.commit
    hub.faults.clear()
    stored.push(README__md=b"changed")
    assert bring("google/gemma-scope-2b-pt-res", tmp_path)["commit"] == begun
    ranges = [headers.get("Range") for headers in hub.fetched("params.npz")]
    assert any(asked and asked != "bytes=0-" for asked in ranges)


# ---- out


@pytest.fixture
def home(tmp_path):
    save_sae(trained("topk"), tmp_path / "sae", reads=[SITE], model_name="gpt2")
    return tmp_path


ABOUT = {
    "name": "my <sae> | 1", "model": "openai-community/gpt2", "dataset": "NeelNanda/pile-10k", "reads": [SITE],
    "architecture": "topk", "d_in": D, "width": M, "k": 5, "licence": "mit",
    "metrics": [["Explained variance", "0.912", "131,072 held-out tokens"]],
}  # fmt: skip


def send_out(home, name, **params):
    own = export_sae.Params(str(home / "sae"), str(home / "out"), name, **{"about": ABOUT, **params})
    return export_sae.run(own, Context(1, 1, export_sae.STAGES))


@pytest.mark.parametrize(("name", "inner"), [("saelens", SITE), ("sparsify", "h.3"), ("dictionary_learning", SITE)])
def test_an_export_is_an_archive_with_a_certificate_and_a_card(home, name, inner) -> None:
    result = send_out(home, name, module="transformer.h.3")
    assert result["inner"] == inner
    assert result["certificate"]["holds"] and not result["certificate"]["by_peer"]
    with zipfile.ZipFile(home / "out" / result["archive"]) as archive:
        archive.extractall(home / "back")
    sae, facts = formats.read(home / "back" / inner)
    assert facts.reads == (SITE,)
    assert difference(sae(inputs()), load_sae(home / "sae")(inputs())) < CLOSE
    card = (home / "back/README.md").read_text()
    assert 'base_model: ["openai-community/gpt2"]' in card and 'license: "mit"' in card
    assert "| Explained variance | 0.912 | 131,072 held-out tokens |" in card
    assert r"my \<sae\> \| 1" in card and "was not asked" in card
    assert result["archive"] == f"my-sae-1-{name}.zip"


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "bert"])
def test_sparsify_s_folder_names_a_module_that_puts_out_the_very_tensor_or_the_site_itself(kind) -> None:
    model = tiny_model(kind)
    sites = [asdict(site) for site in list_sites(model)]
    for site in (one["name"] for one in sites):
        module = module_that_puts_out(site, sites)
        inner = export_sae.folder_name(Params("/sae", "/out", "sparsify", module=module), [site], [], None)
        back = site_of_module(inner)
        same = [f"module:{module}"] * bool(module) + [back] * bool(back)
        found = capture_all(model, [site, *same], torch.arange(6).view(1, 6))
        assert same and all(torch.equal(found[name], found[site]) for name in same), site
        assert bool(module) == (not site.endswith(("hook_z", "hook_resid_mid", "hook_post", "0.hook_resid_pre")))


@pytest.mark.parametrize("site", ["hook_embed", "blocks.3.hook_resid_post", "module:model.embedding"])
def test_gemma_scope_s_folders_promise_no_scale_that_the_files_do_not_have(home, site) -> None:
    save_sae(trained("jumprelu"), home / "sae", reads=[site])
    result = send_out(home, "gemma_scope")
    with zipfile.ZipFile(home / "out" / result["archive"]) as archive:
        archive.extractall(home / "back")
    sae, _ = formats.read(home / "back" / result["inner"])
    assert difference(sae(inputs()), load_sae(home / "sae")(inputs())) < CLOSE


def test_the_same_export_has_the_same_bytes(home) -> None:
    first = store.sha256(home / "out" / send_out(home, "saelens")["archive"])
    assert store.sha256(home / "out" / send_out(home, "saelens")["archive"]) == first


def test_what_its_peer_would_read_otherwise_is_not_packed(home, monkeypatch) -> None:
    """An SAE without one active latent cannot be compared."""
    sae = load_sae(home / "sae")
    sae.b_enc -= 1e30
    save_sae(sae, home / "sae", reads=[SITE])
    with pytest.raises(Exception, match="nothing can be compared"):
        send_out(home, "saelens")
    assert not list((home / "out").glob("*.zip"))


@pytest.fixture
def writable(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    return hub


class Impatient(Context):
    """Somebody cancels it as soon as the hub was sent weights."""

    def __init__(self, hub) -> None:
        super().__init__(1, 1, export_sae.STAGES)
        self.hub = hub

    def check(self) -> None:
        if any(method == "PUT" for method, *_ in self.hub.requests):
            self.wished = "cancel"
        super().check()


def test_a_push_hears_a_cancel_while_the_hub_says_nothing_and_commits_nothing_later(home, writable) -> None:
    writable.fault("/lfs/", holds=(held := threading.Event()))
    own = export_sae.Params(str(home / "sae"), str(home / "out"), "saelens", about=ABOUT, repository="alice/saes")
    with pytest.raises(Cancelled):
        export_sae.run(own, Impatient(writable))
    assert not (home / "out/files").exists()
    held.set()
    for thread in threading.enumerate():
        if thread.name == "push":
            thread.join(30)
    assert writable.repositories["model", "alice/saes"].files == {}


def test_a_licence_that_the_hub_does_not_know_ends_a_push_before_anything_is_sent(home, writable) -> None:
    writable.fault("/api/validate-yaml", status=400, body=b'"license" must be one of [apache-2.0, mit]')
    about = {**ABOUT, "licence": "Apache 2.0"}
    with pytest.raises(Unusable, match='does not take the card: "license" must be one of') as caught:
        send_out(home, "saelens", about=about, repository="alice/saes")
    assert caught.value.field == "licence" and "such as mit" in caught.value.hint
    assert not any(method == "PUT" for method, *_ in writable.requests)


def test_a_push_that_ended_with_nothing_left_to_send_makes_no_commit_either(tmp_path, writable) -> None:
    ended = threading.Event()
    ended.set()
    with pytest.raises(hub_push.Ended):
        hub_push.sent(tmp_path, "alice/saes", "nothing", True, lambda n: None, ended)


def test_a_push_counts_the_bytes_that_are_there(home, writable) -> None:
    ctx = Context(1, 1, export_sae.STAGES)
    own = export_sae.Params(str(home / "sae"), str(home / "out"), "saelens", about=ABOUT, repository="alice/saes")
    result = export_sae.run(own, ctx)
    stored = writable.repositories["model", "alice/saes"]
    assert result["commit"] == stored.commit
    assert ctx.snapshot.stage == "push" and ctx.snapshot.done == sum(map(len, stored.files.values()))


def test_what_a_killed_attempt_left_is_gone_after_the_next(home) -> None:
    for folder in (home / "out", home / "made", home / "made/sae"):
        (folder / ".sae.12345678.tmp").mkdir(parents=True)
        (folder / ".sae.12345678.tmp/cfg.json").write_text("torn")
    (home / "out/files").mkdir()
    send_out(home, "saelens")
    bring(home / "sae", home)
    assert not list(home.rglob("*.tmp")) and not (home / "out/files").exists()
    assert (home / "made/sae/cfg.json").is_file()
