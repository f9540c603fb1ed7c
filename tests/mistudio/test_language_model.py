import json
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from jobs.devices import Memory, memories
from jobs.ml.language_model import weight_bytes as bytes_in_memory
from jobs.models import Job, State
from mistudio import memory
from mistudio.forms.language_model import LanguageModelForm
from mistudio.forms.scan import ScanForm
from mistudio.forms.tokenization import TokenizationForm
from mistudio.forms.training import TrainingForm
from mistudio.measurements import Observation, observations, table
from mistudio.models import LanguageModel
from mistudio.models.language_model import Precision
from mistudio.structure import parts, weight_bytes
from tests import rows
from tests.files import flip
from tests.main_path import launch, work
from tests.mistudio.test_pages import queries
from tests.ml.tiny import save_model, tiny_model

pytestmark = pytest.mark.django_db


@pytest.fixture
def model(alice, tmp_path):
    return launch(LanguageModelForm, alice, source=str(save_model(tiny_model("gpt2"), tmp_path / "gpt2")))


def run(job, model):
    """Do a job on the model here and now."""

    class Work:
        ready = True

        def refresh_from_db(self):
            model.refresh_from_db()
            model.__dict__.pop("lost", None)

    Work.job = job
    work(Work())
    job.refresh_from_db()
    return job.result


def page(client_of, person, model):
    return client_of(person).get(model.get_absolute_url()).content.decode()


def measured(model, speed=1000.0, **fields):
    """A finished job as measure_model leaves it."""
    said = {"device": "CPU", "dtype": "float32", "load_seconds": 2.0, "weight_bytes": 4000, "peak_bytes": 9000}
    runs = {"4": {"context_length": 64, "tokens": 1000, "tokens_per_second": speed}}
    params = {"model_folder": str(model.folder), "dtype": "float32"}
    result = {"measured": {**said, "runs": runs}}
    known = {"state": State.SUCCEEDED, "params": params, "result": result, "finished_at": timezone.now(), **fields}
    return Job.objects.create(team=model.team, kind="measure_model", queue="gpu", subject=model.subject, **known)


# --- architecture


def test_the_page_shows_modules_shapes_and_the_sites_beside_them(model, alice, client_of):
    found = parts(model)
    assert sum(part.total for part in found) == model.n_parameters
    lines = {line.path: line for part in found for line in part.lines if part.path}
    assert lines["attn.c_proj"].sites == [("hook_z", "in"), ("hook_attn_out", "out")]
    assert lines["attn.c_attn"].shapes == [("weight", "32 × 96"), ("bias", "96")]
    text = page(client_of, alice, model)
    assert "Blocks 0–2" in text and "transformer.h.N" in text and "32 × 96" in text


def test_a_model_of_before_says_how_to_get_its_structure(model, alice, client_of):
    LanguageModel.objects.filter(pk=model.pk).update(structure=[])
    assert "Verify its files, and they are described" in page(client_of, alice, model)
    model.refresh_from_db()
    run(model.verify(alice), model)
    assert model.structure and model.verified_at


def test_a_model_that_lists_few_sites_lists_all_once_its_files_are_verified(model, alice, client_of):
    few = [{"name": f"blocks.{n}.hook_resid_post", "width": 32} for n in range(3)]
    full, told = model.sites, "Verify the files, and all are listed"
    assert told not in page(client_of, alice, model)
    LanguageModel.objects.filter(pk=model.pk).update(sites=few)
    assert told in page(client_of, alice, model)
    model.refresh_from_db()
    run(model.verify(alice), model)
    assert model.sites == full and told not in page(client_of, alice, model)


# --- memory


@pytest.mark.parametrize("dtype", Precision.values)
def test_the_estimate_is_what_the_loaded_weights_take(model, dtype):
    from jobs.ml.language_model import load_model

    held = bytes_in_memory(load_model(model.folder, dtype=dtype))
    assert weight_bytes(model, dtype) == pytest.approx(held, rel=0.01)


def test_without_a_structure_nothing_is_guessed_for_int8(alice):
    row = rows.language_model(alice.team)
    assert weight_bytes(row, "int8") is None and weight_bytes(row, "bfloat16") == 20_000


def test_what_fits_where_goes_by_what_is_free_and_by_what_was_measured(alice):
    row = rows.language_model(alice.team, n_parameters=1000)
    seen = [Observation(job=1, purpose="forward", dtype="bfloat16", weight_bytes=5000)]
    found = {need.dtype: need for need in memory.needs(row, seen, [Memory("CPU", 9000, 4500)])}
    assert [found[name].fits[0].verdict for name in ("float32", "bfloat16", "float16")] == ["tight", "no", "fits"]
    assert "in float16 it fits on CPU" in memory.advice(list(found.values()))


def test_this_machine_says_what_it_has():
    own = memories()[0]
    assert own.device == "CPU" and 0 < own.free < own.total


# --- whole, missing, quarantined


def test_a_quarantined_model_is_shown_offered_nowhere_and_refused_with_the_reason(model, alice, client_of):
    texts = rows.dataset(alice.team)
    tokens = rows.tokenization(alice.team, language_model=model)
    flip(model.folder / "model.safetensors")
    assert model.state == "ready"  # only reading it all can tell
    run(model.verify(alice), model)
    assert model.state == "quarantined"
    text = page(client_of, alice, model)
    assert "Quarantined" in text and "Fetch again" in text and "model.safetensors" in text
    form = TokenizationForm({"dataset": texts.pk, "language_model": model.pk}, team=alice.team, owner=alice)
    assert form.launch() is None
    assert "is quarantined: model.safetensors has other content" in form.errors["language_model"][0]
    training = TrainingForm(
        {"tokenization": tokens.pk, "site": "blocks.1.hook_resid_pre"}, team=alice.team, owner=alice
    )
    assert training.launch() is None and "is quarantined" in training.errors["tokenization"][0]
    assert model not in LanguageModel.offered(alice.team, LanguageModel.unusable(alice.team))


def test_a_missing_file_is_found_by_looking_and_fetched_again(model, alice, client_of):
    (model.folder / "tokenizer.json").unlink()
    model = LanguageModel.objects.get(pk=model.pk)
    assert model.state == "missing"
    assert "Files of this model are missing" in page(client_of, alice, model)
    answer = client_of(alice).post(reverse("languagemodel_restore", args=[model.pk]))
    assert answer.url == model.get_absolute_url()
    job = Job.objects.get(kind="restore_model")
    assert "Fetch language model again" in page(client_of, alice, model)
    assert run(job, model)["restored"] == ["tokenizer.json"]
    assert model.state == "ready" and model in LanguageModel.offered(alice.team, LanguageModel.unusable(alice.team))


def test_a_job_on_the_model_is_not_taken_for_the_one_that_made_it(model, alice):
    made_by = model.job
    model.verify(alice)
    model.refresh_from_db()
    assert model.job == made_by and model.state == "ready"


def test_a_model_is_not_deleted_while_a_job_reads_it(model, alice, client_of):
    job = model.verify(alice)
    answer = client_of(alice).post(reverse("languagemodel_delete", args=[model.pk]), follow=True)
    assert f"unfinished job {job.pk}" in answer.content.decode()


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_the_verify_command_tells_damage_by_its_exit_status(model, alice, capsys):
    call_command("verify_model", model.name)
    flip(model.folder / "config.json")
    with pytest.raises(SystemExit) as ended:
        call_command("verify_model", model.name)
    assert ended.value.code == 1
    call_command("restore_model", model.name)
    model.refresh_from_db()
    assert model.damaged == {}


# --- one row for a model and revision


def test_the_same_commit_of_the_hub_is_not_added_twice(alice, client_of):
    commit = "a" * 40
    here = rows.language_model(alice.team, "gpt2", source="owner/gpt2", commit=commit)
    form = LanguageModelForm({"source": "owner/gpt2", "revision": commit}, team=alice.team, owner=alice)
    assert form.launch() is None and form.twin == here
    assert "already as “gpt2”" in form.errors["source"][0]
    answer = client_of(alice).post(reverse("languagemodel_new"), {"source": "owner/gpt2", "revision": commit})
    assert f'href="{here.get_absolute_url()}">Open' in answer.content.decode()
    other = LanguageModelForm({"source": "owner/gpt2", "revision": "b" * 40}, team=alice.team, owner=alice)
    assert other.launch() and other.instance.job.params["known"] == {commit: "gpt2"}


def test_what_another_team_has_is_no_twin(alice, charlie):
    rows.language_model(charlie.team, "gpt2", source="owner/gpt2", commit="a" * 40)
    form = LanguageModelForm({"source": "owner/gpt2", "revision": "a" * 40}, team=alice.team, owner=alice)
    assert form.launch() and form.instance.job.params["known"] == {}


# --- measured


def test_measuring_here_gives_figures_that_the_page_shows_with_their_number(model, alice, client_of):
    answer = client_of(alice).post(
        reverse("languagemodel_measure", args=[model.pk]), {"dtype": "bfloat16", "context_length": 16}
    )
    assert answer.status_code == 302
    job = Job.objects.get(kind="measure_model")
    Job.objects.filter(pk=job.pk).update(params={**job.params, "seconds": 0.05, "rows": [1, 2]})
    job.refresh_from_db()
    said = run(job, model)["measured"]
    assert said["load_seconds"] > 0 and said["weight_bytes"] == 2 * model.n_parameters
    assert [run["tokens"] % (int(rows) * 16) for rows, run in said["runs"].items()] == [0, 0]
    seen = observations(alice.team)[model.pk]
    assert {one.rows for one in seen} == {None, 1, 2} and {one.dtype for one in seen} == {"bfloat16"}
    assert "nothing here is typed in" in page(client_of, alice, model)


def test_speeds_of_alike_runs_are_one_row_with_median_and_range(alice, client_of):
    row = rows.language_model(alice.team)
    for speed in (100, 300, 200):
        measured(row, speed)
    [line] = table(observations(alice.team)[row.pk])
    assert (line.speed.n, line.speed.middle, line.speed.low, line.speed.high) == (3, 200, 100, 300)


def test_failures_are_kept_and_shown_but_not_those_of_the_disk_or_the_network(alice, client_of):
    row = rows.language_model(alice.team)
    for code in ("OUT_OF_MEMORY", "DISK_FULL"):
        measured(row, state=State.FAILED, error_code=code, result={})
    assert [one.error for one in observations(alice.team)[row.pk]] == ["OUT_OF_MEMORY"]
    assert "out of memory" in page(client_of, alice, row)


@pytest.mark.parametrize(
    ("written", "dtype"), [("begun.json", "bfloat16"), ("chunks/plan.json", "bfloat16"), ("", "auto")]
)
def test_a_failure_of_the_fastest_precision_counts_for_the_one_that_was_settled(written, dtype, alice, tmp_path):
    row = rows.language_model(alice.team)
    if written:
        (tmp_path / written).parent.mkdir(exist_ok=True)
        (tmp_path / written).write_text('{"dtype": "bfloat16", "model_batch": 8}')
    params = {"model_folder": str(row.folder), "folder": str(tmp_path), "dtype": "auto"}
    failed = {"state": State.FAILED, "error_code": "OUT_OF_MEMORY", "params": params}
    Job.objects.create(team=alice.team, kind="train_sae", queue="gpu", **failed)
    assert [one.dtype for one in observations(alice.team)[row.pk]] == [dtype]


def test_measurements_of_another_team_or_model_are_not_ones_own(alice, charlie):
    mine, other = rows.language_model(alice.team), rows.language_model(alice.team, "other")
    measured(other)
    measured(rows.language_model(charlie.team))
    assert observations(alice.team, mine) == {}
    assert list(observations(alice.team)) == [other.pk]


def test_notes_are_kept_apart_and_no_job_overwrites_them(model, alice, client_of):
    client_of(alice).post(reverse("languagemodel_note", args=[model.pk]), {"notes": "about 9,000 tokens/s <b>"})
    run(model.verify(alice), model)
    assert model.notes == "about 9,000 tokens/s <b>"
    text = page(client_of, alice, model)
    assert "typed in by people, not measured" in text and "9,000 tokens/s &lt;b&gt;" in text
    assert observations(alice.team) == {}


# --- usage, recommendation


def test_the_page_counts_what_uses_the_model_and_links_to_the_list(alice, client_of):
    row = rows.language_model(alice.team)
    for n in range(25):
        rows.tokenization(alice.team, f"tokens-{n}", language_model=row)
    rows.tokenization(alice.team, "foreign")
    assert "25 tokenizations</a>" in page(client_of, alice, row)
    listed = client_of(alice).get(f"/tokenizations/?language_model={row.pk}")
    assert listed.context["page_obj"].paginator.count == 25
    assert client_of(alice).get("/tokenizations/?language_model=999999").status_code == 200


def test_a_recommendation_is_in_the_address_and_says_why(alice, client_of):
    row = rows.language_model(alice.team)
    measured(row)
    text = client_of(alice).get("/models/recommend/?purpose=scan&tokens=1000").content.decode()
    assert "in float32, 4 rows in a pass" in text and "measured in forward passes, once." in text
    assert client_of(alice).get("/models/recommend/").status_code == 200
    assert "Select a valid choice" in client_of(alice).get("/models/recommend/?purpose=eat").content.decode()


def test_the_recommend_command_says_the_same_as_json(alice):
    row = rows.language_model(alice.team)
    measured(row)
    out = StringIO()
    call_command("recommend_model", "scan", "--tokens", "1000", "--json", stdout=out)
    assert json.loads(out.getvalue())["best"]["key"] == row.pk


def test_the_page_asks_as_much_with_many_measurements_as_with_few(alice, client_of):
    row = rows.language_model(alice.team)
    client, asked = client_of(alice), []
    for n in (1, 30):
        for _ in range(n):
            measured(row)
        asked.append(queries(client, row.get_absolute_url()))
    assert asked[0] == asked[1] <= 30


# --- precision for every run


def test_a_training_takes_the_precision_it_is_given_and_a_scan_follows(alice):
    from mistudio.forms.scan import ScanForm

    tokens = rows.tokenization(alice.team)
    data = {"tokenization": tokens.pk, "site": "blocks.1.hook_resid_pre", "dtype": "int8"}
    made = TrainingForm(data, team=alice.team, owner=alice).launch()
    assert made.job.params["dtype"] == "int8" and "--dtype int8" in made.command()
    sae = rows.sae(alice.team, training=made)
    scan = ScanForm({"sae": sae.pk}, team=alice.team, owner=alice).launch()
    assert scan.job.params["dtype"] == "int8"
    wrong = TrainingForm({**data, "dtype": "int3"}, team=alice.team, owner=alice)
    assert wrong.launch() is None and "dtype" in wrong.errors


def test_a_form_looks_once_which_models_cannot_be_used_however_many_things_it_offers(alice):
    sae = rows.sae(alice.team)
    for form_class, more in ((TokenizationForm, {}), (TrainingForm, {}), (ScanForm, {"sae": sae})):
        with CaptureQueriesContext(connection) as caught:
            form_class(team=alice.team, owner=alice, **more)
        assert looked_for_unusable(caught) == 1, form_class


def test_a_page_that_says_what_its_form_would_make_prepares_the_form_once(alice, client_of):
    rows.tokenization(alice.team)
    with CaptureQueriesContext(connection) as caught:
        answer = client_of(alice).get("/trainings/new/")
    assert "1 SAE" in answer.content.decode() and not answer.context["form"].errors
    assert looked_for_unusable(caught) == 1


def looked_for_unusable(caught):
    """How often the language models were asked for whose folders are looked into."""
    return len([query for query in caught if "ready_at" in query["sql"] and '"files" = ' in query["sql"]])
