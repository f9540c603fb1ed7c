"""Trainings that read several activation caches, each with its share of every batch."""

import re
import shlex
from html import unescape
from io import StringIO

import pytest
from django.core.management import call_command

from jobs.ml import store
from mistudio.forms.activation_cache import ActivationCacheForm
from mistudio.forms.dataset import DatasetForm
from mistudio.forms.language_model import LanguageModelForm
from mistudio.forms.tokenization import TokenizationForm
from mistudio.forms.training import TrainingForm
from mistudio.models import Sae, Training
from tests import rows
from tests.main_path import launch, write_texts
from tests.mistudio.test_forms import errors, launched
from tests.mistudio.test_pages import queries
from tests.ml.tiny import documents, save_model, tiny_model

pytestmark = pytest.mark.django_db
SITE = "blocks.1.hook_resid_pre"
RUN = {"site": SITE, "width": 32, "k": 4, "n_tokens": 4096, "batch_tokens": 256}


@pytest.fixture
def model(alice):
    return rows.language_model(alice.team)


@pytest.fixture
def prose(alice, model):
    return rows.activation_cache(alice.team, "prose", tokenization=text(alice, model, "prose-text"))


@pytest.fixture
def code(alice, model):
    return rows.activation_cache(alice.team, "code", tokenization=text(alice, model, "code-text"), n_stored=3_000)


def text(alice, model, name, **fields):
    return rows.tokenization(alice.team, name, language_model=model, **fields)


def form(cache, *chosen, **changes):
    return {**RUN, "tokenization": cache.tokenization_id, "caches": list(chosen), **changes}


def refused(alice, data):
    return errors(TrainingForm, alice, data)["caches"]


def test_a_training_reads_several_caches_by_the_number_of_their_tokens(alice, prose, code):
    run = launched(TrainingForm, alice, form(prose, prose.pk, code.pk))
    assert run.job.params["caches"] == [str(prose.folder), str(code.folder)]
    assert run.job.params["cache_weights"] == []
    assert "--cache prose --cache code" in run.command()


def test_with_weights_each_batch_has_its_share_of_each(alice, prose, code):
    run = launched(TrainingForm, alice, form(prose, f"{code.pk}:1", f"{prose.pk}:2.5"))
    assert run.job.params["cache_weights"] == [2.5, 1.0], "in the order of the caches, whichever was named first"
    assert "--cache prose:2.5 --cache code:1" in run.command()
    assert [str(share) for share in run.reads] == [f"prose in {run}", f"code in {run}"]


def test_the_page_sends_boxes_with_a_weight_beside_each(alice, client_of, prose, code):
    client = client_of(alice)
    page = client.get("/trainings/new/", {"tokenization": prose.tokenization_id}).content.decode()
    assert page.count('name="caches"') == 2 and f'name="weight_{code.pk}"' in page
    sent = form(prose, prose.pk, code.pk, **{f"weight_{prose.pk}": "3", f"weight_{code.pk}": "1"})
    client.post("/trainings/new/", sent)
    assert Training.objects.get().job.params["cache_weights"] == [3.0, 1.0]


def test_what_was_ticked_and_weighed_stays_when_something_is_wrong_or_another_text_is_chosen(
    alice, client_of, prose, code
):
    client = client_of(alice)
    sent = form(prose, prose.pk, code.pk, k="99", **{f"weight_{prose.pk}": "3", f"weight_{code.pk}": "1"})
    answer = client.post("/trainings/new/", sent)
    expected = [(prose, True, "3"), (code, True, "1")]
    assert answer.status_code == 422 and answer.context["form"].cache_rows == expected
    again = client.get("/trainings/new/", {**sent, "tokenization": code.tokenization_id}).context["form"]
    assert again.cache_rows == expected[::-1], "caches of the chosen text come first"


def test_one_cache_alone_needs_no_weight(alice, prose):
    run = launched(TrainingForm, alice, form(prose, f"{prose.pk}:7"))
    assert run.job.params["cache_weights"] == [] and run.command().count("--cache prose ") == 1


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (("2", ""), "Give each of the caches a weight, or none of them"),
        (("0", "1"), "“0” is no weight"),
        (("-1", "1"), "“-1” is no weight"),
        (("nan", "1"), "“nan” is no weight"),
        (("two", "1"), "“two” is no weight"),
        (("1000", "1"), "A batch of 256 tokens would have none of “code”"),
    ],
)
def test_weights_that_no_batch_can_have_are_refused(weights, said, alice, prose, code):
    words = [f"{cache.pk}:{weight}" for cache, weight in zip((prose, code), weights, strict=True)]
    assert said in refused(alice, form(prose, *words))


def test_a_cache_too_small_for_a_share_by_tokens_is_named(alice, prose, code):
    type(code).objects.filter(pk=code.pk).update(n_stored=30)
    assert "would have none of “code”" in refused(alice, form(prose, prose.pk, code.pk))


def test_at_least_one_is_of_the_text_that_the_sae_is_measured_on(alice, model, prose, code):
    other = text(alice, model, "other")
    data = {**form(prose, prose.pk, code.pk), "tokenization": other.pk}
    assert "No activations of “other” are among them" in refused(alice, data)


def test_what_is_held_out_is_not_trained_on_through_another_tokenization(alice, model, prose):
    same = text(alice, model, "again", dataset=prose.tokenization.dataset, seed=1)
    leaking = rows.activation_cache(alice.team, "leaking", tokenization=same)
    data = form(prose, prose.pk, leaking.pk)
    assert "“leaking” may hold what “prose-text” holds out" in refused(alice, data)
    type(same).objects.filter(pk=same.pk).update(seed=prose.tokenization.seed, context_length=64)
    assert launched(TrainingForm, alice, data).reads[1].cache == leaking


def test_caches_of_different_kinds_do_not_go_together(alice, model, prose):
    special = rows.activation_cache(alice.team, "special", tokenization=text(alice, model, "more"), skip_special=False)
    assert "of different choices of special tokens" in refused(alice, form(prose, prose.pk, special.pk))


def test_the_precision_and_the_weights_are_compared_as_the_files_say_them(alice, prose, code):
    for cache, dtype in ((prose, "float32"), (code, "bfloat16")):
        cache.folder.mkdir(parents=True)
        store.write_json(cache.folder / "manifest.json", {"plan": {"model": "m", "dtype": dtype}})
    assert "of different precisions of the language model" in refused(alice, form(prose, prose.pk, code.pk))


def test_a_clone_reads_the_same_caches_with_the_same_weights(alice, client_of, prose, code):
    run = launched(TrainingForm, alice, form(prose, f"{prose.pk}:2", f"{code.pk}:1"))
    run.job.move("cancelled")
    page = client_of(alice).get(run.get_absolute_url()).content.decode()
    assert "weight 2" in page and f'href="{code.get_absolute_url()}"' in page
    [address] = re.findall(r'href="(/trainings/new/[^"]+)">Change and try again', page)
    assert client_of(alice).get(unescape(address)).context["form"].cache_rows == [(prose, True, "2"), (code, True, "1")]


def test_the_command_that_a_page_shows_starts_the_same_training(alice, prose, code):
    run = launched(TrainingForm, alice, form(prose, f"{prose.pk}:2", f"{code.pk}:1"))
    words = shlex.split(run.command())[1:]
    words[words.index("--name") + 1] = "again"
    call_command(*words, "--no-wait", "--team", alice.team.name, stdout=StringIO(), stderr=StringIO())
    again = Training.objects.get(name="again").job.params
    assert {key: again[key] for key in ("caches", "cache_weights")} == {
        key: run.job.params[key] for key in ("caches", "cache_weights")
    }


@pytest.mark.parametrize(
    ("word", "said"), [("nowhere", "No activation cache “nowhere”"), ("prose:much", "“much” is no weight")]
)
def test_the_command_names_what_is_wrong_with_a_cache(word, said, alice, prose):
    heard = StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("train_sae", "prose-text", "--cache", word, "--team", alice.team.name, stdout=heard, stderr=heard)
    assert ended.value.code == 2 and said in heard.getvalue()


def test_a_name_may_end_like_a_weight(alice, prose):
    rows.activation_cache(alice.team, "prose:2", tokenization=prose.tokenization)
    call_command(
        "train_sae", "prose-text", "--cache", "prose:2", "--site", SITE, "--no-wait", "--team", alice.team.name,
        stdout=StringIO(), stderr=StringIO(),
    )  # fmt: skip
    assert [share.cache.name for share in Training.objects.get().reads] == ["prose:2"]


def test_caches_of_other_teams_are_neither_shown_nor_read(alice, charlie, client_of, prose):
    theirs = rows.activation_cache(charlie.team, "theirs")
    shown = client_of(alice).get("/trainings/new/", {"caches": theirs.pk}).context["form"].cache_rows
    assert [cache for cache, _, _ in shown] == [prose]
    assert "not one of the available choices" in refused(alice, form(prose, theirs.pk))


def test_the_form_asks_as_much_for_many_caches_as_for_few(alice, client_of, model, prose):
    client, url = client_of(alice), f"/trainings/new/?tokenization={prose.tokenization_id}"
    few = queries(client, url)
    for n in range(8):
        rows.activation_cache(alice.team, f"more-{n}", tokenization=text(alice, model, f"text-{n}"))
    assert queries(client, url) == few


def test_two_caches_of_two_texts_are_trained_on_together(alice, tmp_path):
    model = launch(LanguageModelForm, alice, source=str(save_model(tiny_model("llama"), tmp_path / "tiny")))
    tokens = []
    for name, texts in (("prose", documents(150)), ("code", [f"def f{n}(x): return x + {n}" * 8 for n in range(80)])):
        path = write_texts(tmp_path / f"{name}.jsonl", texts)
        data = launch(DatasetForm, alice, source=str(path), text_column="text", name=name)
        tokens.append(
            launch(TokenizationForm, alice, dataset=data.pk, language_model=model.pk, context_length=32, held_out=0.3)
        )
    caches = [launch(ActivationCacheForm, alice, tokenization=text.pk, sites=SITE) for text in tokens]
    words = [f"{cache.pk}:{weight}" for cache, weight in zip(caches, (3, 1), strict=True)]
    run = launch(TrainingForm, alice, **{**RUN, "tokenization": tokens[0].pk, "caches": words})
    told = store.read_manifest(run.sae_folder(0))["activations"]["caches"]
    assert [entry["tokens_per_batch"] for entry in told] == [192, 64]
    assert Sae.objects.get(training=run).fvu < 1
