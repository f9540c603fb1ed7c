import pytest
from django.utils import timezone

from jobs.models import Job
from mistudio.forms.dataset import DatasetForm
from mistudio.forms.language_model import LanguageModelForm
from mistudio.forms.scan import ScanForm
from mistudio.forms.tokenization import TokenizationForm
from mistudio.forms.training import TrainingForm
from mistudio.models import Dataset, LanguageModel, Training
from mistudio.models.plan import differences
from tests import rows

pytestmark = pytest.mark.django_db


def errors(form_class, person, data, **kwargs):
    """What the form says of each field."""
    form = form_class(data, team=person.team, owner=person, **kwargs)
    assert form.launch() is None
    return {name: " ".join(said) for name, said in form.errors.items()}


def launched(form_class, person, data, **kwargs):
    form = form_class(data, team=person.team, owner=person, **kwargs)
    made = form.launch()
    assert made is not None, form.errors.as_text()
    return made


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "required"),
        ("/nowhere/at/all", "no file or folder /nowhere/at/all"),
        ("two words", "neither a hub id"),
        ("a/b/c", "no file or folder"),
        ("../nowhere", "no file or folder"),
        ("gpt2\x07", "control characters"),
        ("owner/<script>", "neither a hub id"),
        ("ownér/name", "neither a hub id"),
        (f"owner/{'x' * 97}", "neither a hub id"),
        ("~nobody-here/x", "cannot be looked at"),
        ("/" + "x" * 300, "cannot be looked at"),
    ],
)
@pytest.mark.parametrize("form_class", [LanguageModelForm, DatasetForm])
def test_a_source_that_is_neither_hub_id_nor_path_is_refused_at_once(form_class, source, said, alice):
    assert said in errors(form_class, alice, {"source": source})["source"]


def test_the_files_of_other_objects_are_no_source(alice, charlie):
    folder = rows.dataset(charlie.team, "secret").folder
    folder.mkdir(parents=True)
    (folder / "documents.jsonl").write_text('{"text": "theirs"}')
    said = errors(DatasetForm, alice, {"source": str(folder / "documents.jsonl")})
    assert "miStudio's own data" in said["source"]


def test_the_files_that_others_upload_and_the_whole_of_the_data_are_no_source_either(alice, settings):
    theirs = settings.MISTUDIO_DATA / "uploads" / "12"
    theirs.mkdir(parents=True)
    (theirs / "texts.jsonl").write_text('{"text": "theirs"}')
    assert "part of miStudio's own data" in errors(DatasetForm, alice, {"source": str(theirs)})["source"]
    for folder in (settings.MISTUDIO_DATA, settings.MISTUDIO_DATA.parent):
        assert "holds miStudio's own data" in errors(DatasetForm, alice, {"source": str(folder)})["source"]


def test_a_model_gets_its_name_from_its_source_and_a_job(alice):
    model = launched(LanguageModelForm, alice, {"source": "openai-community/gpt2"})
    assert (model.name, model.state, model.job.kind, model.owner) == ("gpt2", "queued", "add_model", alice)
    assert model.job.params["folder"] == str(model.folder)


def test_two_objects_with_one_name_are_refused_and_made_up_names_get_a_number(alice):
    launched(LanguageModelForm, alice, {"source": "openai-community/gpt2"})
    said = errors(LanguageModelForm, alice, {"source": "other/gpt2", "name": "gpt2"})
    assert "A language model named “gpt2” exists" in said["name"]
    assert launched(LanguageModelForm, alice, {"source": "other/gpt2"}).name == "gpt2-2"


def test_a_name_taken_in_the_same_moment_is_an_error_of_the_field(alice):
    form = LanguageModelForm({"source": "gpt2", "name": "mine"}, team=alice.team, owner=alice)
    assert form.is_valid()
    rows.language_model(alice.team, "mine")
    assert form.launch() is None and "just taken" in form.errors["name"][0]


def test_another_team_may_use_the_same_name(alice, charlie):
    for person in (alice, charlie):
        assert launched(DatasetForm, person, {"source": "owner/texts"}).name == "texts"
    assert Dataset.objects.filter(name="texts").count() == 2


def test_a_dataset_of_zero_documents_cannot_be_asked_for(alice):
    assert "Give 1 or more" in errors(DatasetForm, alice, {"source": "a/b", "max_documents": "0"})["max_documents"]


@pytest.mark.parametrize(
    ("length", "said"), [("4096", "from 8 to 128"), ("4", "from 8 to 128"), ("many", "whole number")]
)
def test_a_context_the_model_cannot_read_is_refused_with_the_range(alice, length, said):
    data = {
        "dataset": rows.dataset(alice.team).pk,
        "language_model": rows.language_model(alice.team).pk,
        "context_length": length,
    }
    assert said in errors(TokenizationForm, alice, data)["context_length"]


def test_the_context_length_defaults_to_the_models_own(alice):
    data = {"dataset": rows.dataset(alice.team).pk, "language_model": rows.language_model(alice.team).pk}
    tokens = launched(TokenizationForm, alice, data)
    assert (tokens.context_length, tokens.held_out, tokens.name) == (128, 0.1, "texts-tiny")


@pytest.mark.parametrize("held_out", ["0", "0.9", "-1"])
def test_the_held_out_part_must_leave_something_on_both_sides(alice, held_out):
    data = {
        "dataset": rows.dataset(alice.team).pk,
        "language_model": rows.language_model(alice.team).pk,
        "held_out": held_out,
    }
    assert "outside 0.01 to 0.5" in errors(TokenizationForm, alice, data)["held_out"]


def test_only_what_is_ready_and_ones_own_can_be_chosen(alice, charlie):
    unready = rows.dataset(alice.team, "unready", ready_at=None)
    foreign = rows.dataset(charlie.team, "foreign")
    model = rows.language_model(alice.team)
    for choice in (unready, foreign):
        said = errors(TokenizationForm, alice, {"dataset": choice.pk, "language_model": model.pk})
        assert "not one of the available choices" in said["dataset"]


WRONG_TRAININGS = [
    (
        "site",
        "blocks.9.hook_resid_pre",
        "has no site blocks.9.hook_resid_pre. It has blocks.0.hook_resid_pre",
    ),
    ("site", "blocks.1.hook_resid_pst", "Did you mean blocks.1.hook_resid_post?"),
    ("site", "blocks.1.hook_z.2", "blocks.1.hook_z has heads 0 to 1."),
    ("site", "module:", "has no site module:."),
    ("site", "module:a b", "any module module:<path>"),
    ("site", f"module:{'a.' * 1000}b", "at most 2000 characters"),
    ("site", "blocks.0.hook_resid_post,blocks.9.hook_resid_pre", "has no site blocks.9"),
    ("writes", "blocks.0.hook_resid_post", "Only transcoders write another site"),
    ("width", "32,many", "“many” is none"),
    ("width", "0", "outside 1 to"),
    ("k", "64", "k must be from 1 to the width, 32, not 64. Lower k or raise the width."),
    ("k", "0", "k must be a whole number from 1, not 0."),
    ("k", "4, 64", "k must be from 1 to the width, 32, not 64."),
    ("n_tokens", "0", "outside 1 to"),
    ("batch_tokens", "1", "outside 16 to"),
    ("lr", "-1", "Learning rate must be a number above 0"),
    ("lr", "nan", "Enter a number"),
    ("architecture", "magic", "magic is none of topk, batchtopk"),
    ("dtype", "int3", "not one of the available"),
]


@pytest.mark.parametrize(("field", "value", "said"), WRONG_TRAININGS)
def test_a_training_names_the_field_that_is_wrong(alice, field, value, said):
    tokens = rows.tokenization(alice.team)
    data = {
        "tokenization": tokens.pk,
        "site": "blocks.1.hook_resid_pre",
        "width": "32",
        "k": "4",
        field: value,
    }
    assert said in errors(TrainingForm, alice, data)[field]
    assert not Training.objects.exists() and not Job.objects.exists()


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        ({"architecture": "crosscoder"}, "site", "Crosscoder reads several sites"),
        ({"architecture": "transcoder"}, "writes", "Transcoder needs a site to write"),
        (
            {"architecture": "topk,jumprelu", "bandwidth": "0"},
            "bandwidth",
            "Bandwidth must be a number above 0, not 0.0",
        ),
        ({"architecture": "jumprelu", "l0_loss": "cubic"}, "l0_loss", "L0 loss must be one of quadratic, tanh, step"),
        (
            {"width": "32,64,128", "k": "1,2,3", "seed": "0,1,2", "lr": "1,2,3"},
            "__all__",
            "81 SAEs at once",
        ),
    ],
)
def test_saes_that_cannot_be_are_refused_by_what_is_wrong(alice, asked, field, said):
    tokens = rows.tokenization(alice.team)
    data = {"tokenization": tokens.pk, "site": "blocks.1.hook_resid_pre", "width": "32", "k": "4"}
    assert said in errors(TrainingForm, alice, {**data, **asked})[field]
    assert not Training.objects.exists()


def test_several_values_make_an_sae_of_each_combination_and_a_crosscoder_of_all_sites(alice):
    tokens = rows.tokenization(alice.team)
    data = {
        "tokenization": tokens.pk, "site": "blocks.0.hook_resid_post, blocks.1.hook_resid_pre", "width": "32, 64",
        "architecture": ["topk", "jumprelu", "crosscoder"], "k": "4, 8", "seed": "1",
    }  # fmt: skip
    run = launched(TrainingForm, alice, data)
    assert len(run.members) == 2 * 2 * 2 + 2 * 2 + 2 * 2, "k multiplies what has a k"
    assert (run.width, run.options) == ("32,64", {"k": "4,8"})
    assert [len(one["reads"]) for one in run.members] == [1] * 12 + [2] * 4
    folders = [one["folder"] for one in run.job.params["saes"]]
    assert len(set(folders)) == 16 and folders[1].endswith("sae-1")
    assert differences(run.members)[0] == "TopK · blocks.0.hook_resid_post · 32 · k 4"
    assert "--site blocks.0.hook_resid_post,blocks.1.hook_resid_pre" in run.command() and "--k 4,8" in run.command()


def test_each_architecture_keeps_its_own_sparsity_setting_alone(alice):
    tokens = rows.tokenization(alice.team)
    data = {"tokenization": tokens.pk, "site": "blocks.0.hook_resid_post", "width": "64"}
    topk = launched(TrainingForm, alice, {**data, "l1_coefficient": "3"})
    relu = launched(TrainingForm, alice, {**data, "architecture": "standard", "k": "3"})
    assert topk.members[0]["options"] == {"k": 32, "aux_coefficient": 1 / 32}
    assert relu.members[0]["options"] == {"l1_coefficient": 5.0, "sparsity_warmup_share": 0.3, "aux_coefficient": 0.0}
    assert topk.language_model == tokens.language_model


def test_the_form_offers_the_sites_of_the_chosen_models_tokens_and_reads_the_middle_where_none_is_ticked(alice):
    tokens = rows.tokenization(alice.team)
    form = TrainingForm(team=alice.team, owner=alice, initial={"tokenization": str(tokens.pk)})
    offered = [site["name"] for _, sites in form.site_grid for site in sites]
    assert offered == [site["name"] for site in rows.SITES]
    assert form.middle == launched(TrainingForm, alice, {"tokenization": tokens.pk}).site == "blocks.1.hook_resid_pre"


@pytest.mark.parametrize("site", ["blocks.1.hook_z.1", "module:model.layers.1.mlp", "module:model.layers.1.mlp:input"])
def test_a_site_that_is_not_listed_can_be_typed_beside_those_ticked(alice, client_of, site):
    tokens = rows.tokenization(alice.team)
    sent = {"tokenization": tokens.pk, "site": ["blocks.0.hook_resid_post", f" {site} "]}
    assert client_of(alice).post("/trainings/new/", sent).status_code == 302
    run = Training.objects.get()
    assert [one["reads"] for one in run.job.params["saes"]] == [["blocks.0.hook_resid_post"], [site]]
    again = TrainingForm(team=alice.team, owner=alice, initial={"tokenization": str(tokens.pk), "site": run.site})
    assert again.other_sites == site
    assert [one["name"] for _, sites in again.site_grid for one in sites if one["ticked"]] == [run.site.split(",")[0]]


def test_the_fastest_precision_is_taken_unless_one_is_chosen_and_a_scan_reads_in_the_same(alice):
    tokens = rows.tokenization(alice.team)
    data = {"tokenization": tokens.pk, "site": "blocks.0.hook_resid_post"}
    fastest = launched(TrainingForm, alice, data)
    chosen = launched(TrainingForm, alice, {**data, "dtype": "float16"})
    assert (fastest.job.params["dtype"], chosen.job.params["dtype"]) == ("auto", "float16")
    assert (fastest.computed_in, chosen.computed_in) == ("", "float16")
    fastest.result = {"dtype": "bfloat16"}
    assert fastest.computed_in == "bfloat16"
    for run, dtype in ((fastest, "bfloat16"), (chosen, "float16"), (rows.training(alice.team), "float32")):
        sae = rows.sae(alice.team, f"sae-{dtype}", training=run)
        assert launched(ScanForm, alice, {"n_tokens": "10"}, sae=sae).job.params["dtype"] == dtype


def test_a_scan_reads_what_the_sae_was_trained_on_and_never_more_than_is_held_out(alice):
    sae = rows.sae(alice.team)
    scan = launched(ScanForm, alice, {"n_tokens": "5000"}, sae=sae)
    assert (scan.tokenization, scan.n_tokens) == (sae.training.tokenization, 1000)


def test_a_scan_refuses_the_tokens_of_another_model(alice):
    sae, other = rows.sae(alice.team), rows.tokenization(alice.team, "other")
    said = errors(ScanForm, alice, {"sae": sae.pk, "tokenization": other.pk})
    assert f"tokens of {other.language_model.name}" in said["tokenization"]


def test_the_same_form_sent_twice_makes_one_object_and_one_job(alice, client_of):
    client = client_of(alice)
    form = client.get("/models/new/").context["form"]
    data = {"source": "openai-community/gpt2", "submission": str(form.initial["submission"])}
    answers = [client.post("/models/new/", data) for _ in range(2)]
    assert [a.status_code for a in answers] == [302, 302]
    assert answers[0].url == answers[1].url
    assert LanguageModel.objects.count() == Job.objects.count() == 1


def test_what_was_typed_is_kept_when_it_is_wrong(alice, client_of):
    answer = client_of(alice).post("/models/new/", {"source": "two words", "revision": "v1.5"})
    assert answer.status_code == 422
    text = answer.content.decode()
    assert 'value="two words"' in text and 'value="v1.5"' in text and "neither a hub id" in text


def test_a_cloned_training_with_an_emptied_field_takes_the_default(alice, client_of):
    tokens = rows.tokenization(alice.team)
    address = f"/trainings/new/?tokenization={tokens.pk}&width=4096&n_tokens=5000"
    sent = {"tokenization": tokens.pk, "site": "blocks.1.hook_resid_pre", "width": "", "n_tokens": "", "k": "4"}
    assert client_of(alice).post(address, sent).status_code == 302
    made = Training.objects.get()
    assert (made.width, made.n_tokens) == ("2048", 1_000_000)


def test_logs_of_jobs_are_no_source(alice, settings):
    log = settings.MISTUDIO_DATA / "jobs" / "12" / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("theirs")
    assert "own data" in errors(DatasetForm, alice, {"source": str(log)})["source"]


def test_html_in_a_name_is_shown_as_text(alice, client_of):
    rows.language_model(alice.team, "<script>alert(1)</script>\u202egpj", ready_at=timezone.now())
    text = client_of(alice).get("/models/").content.decode()
    assert "<script>alert(1)" not in text and "&lt;script&gt;alert(1)" in text
