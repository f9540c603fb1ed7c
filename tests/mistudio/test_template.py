import json
from io import StringIO

import pytest
from django.core.management import call_command
from django.urls import reverse

from jobs.models import Job
from mistudio.models import Template, Tokenization, Training
from tests import rows
from tests.mistudio.test_pages import queries

pytestmark = pytest.mark.django_db
SETTINGS = {"architecture": "topk", "width": 64, "k": 8, "site": "blocks.1.hook_resid_post", "lr": 0.001}


def template(team, name="quick", noun="training", **values):
    return Template.objects.create(team=team, noun=noun, name=name, values=values or SETTINGS)


def filled(tokens, **changes):
    """What the browser sends when "Save template" is pressed on a training."""
    data = {
        "tokenization": tokens.pk,
        "site": "blocks.0.hook_resid_pre",
        "architecture": "topk",
        "width": "64",
        "k": "4",
    }
    return {**data, "seed": "7", "keep": "template", "template-name": "small and quick", **changes}


def test_the_settings_of_a_form_are_saved_and_nothing_starts(alice, client_of):
    tokens = rows.tokenization(alice.team)
    answer = client_of(alice).post(reverse("training_new"), filled(tokens))
    row = Template.objects.get()
    assert answer.status_code == 200 and "Nothing was started" in answer.content.decode()
    assert (row.team, row.owner, row.noun, row.name) == (alice.team, alice, "training", "small and quick")
    assert (row.values["width"], row.values["k"], row.values["seed"]) == ("64", "4", "7")
    assert not {"tokenization", "name", "submission"} & set(row.values)
    assert not Training.objects.exists() and not Job.objects.exists()


def test_what_was_typed_is_still_there_after_saving(alice, client_of):
    tokens = rows.tokenization(alice.team)
    page = client_of(alice).post(reverse("training_new"), filled(tokens, name="my run")).content.decode()
    assert 'value="my run"' in page and 'value="64"' in page


def test_wrong_settings_are_not_saved(alice, client_of):
    tokens = rows.tokenization(alice.team)
    answer = client_of(alice).post(reverse("training_new"), filled(tokens, k="65"))
    assert answer.status_code == 422 and "raise the width" in answer.content.decode()
    assert not Template.objects.exists()


def test_a_template_without_a_name_is_not_saved(alice, client_of):
    tokens = rows.tokenization(alice.team)
    answer = client_of(alice).post(reverse("training_new"), filled(tokens, **{"template-name": " "}))
    assert answer.status_code == 422 and not Template.objects.exists()


def test_a_template_is_replaced_only_when_that_is_asked_for(alice, client_of):
    tokens, client = rows.tokenization(alice.team), client_of(alice)
    template(alice.team, "small and quick")
    refused = client.post(reverse("training_new"), filled(tokens))
    assert refused.status_code == 422 and "exists. Choose another name, or replace it" in refused.content.decode()
    client.post(reverse("training_new"), filled(tokens, **{"template-replace": "on"}))
    assert Template.objects.get().values["k"] == "4"


def test_the_form_can_be_sent_without_a_name_for_a_template(alice, client_of):
    rows.tokenization(alice.team)
    page = client_of(alice).get(reverse("training_new")).content.decode()
    assert "required" not in page.partition('name="template-name"')[2].partition(">")[0]


def test_a_template_fills_the_form_for_another_text(alice, client_of):
    row, tokens = template(alice.team), rows.tokenization(alice.team)
    answer = client_of(alice).get(reverse("training_new"), {"template": row.pk, "tokenization": tokens.pk})
    form = answer.context["form"]
    assert (form["width"].value(), form["k"].value(), form["site"].value()) == (64, 8, "blocks.1.hook_resid_post")
    assert "The form is filled from" in answer.content.decode()


def test_filling_in_keeps_the_text_and_the_name_that_were_chosen_since_the_page_came(alice, client_of):
    row, first, newest = template(alice.team), rows.tokenization(alice.team, "a"), rows.tokenization(alice.team, "b")
    client = client_of(alice)
    assert client.get(reverse("training_new")).context["form"].chosen == newest
    sent = {"tokenization": first.pk, "name": "my run", "width": "128", "template": row.pk, "fill": "template"}
    answer = client.post(reverse("training_new"), {**sent, "template-name": "x", "submission": "y"}, follow=True)
    form = answer.context["form"]
    assert answer.status_code == 200 and not Training.objects.exists()
    assert (form.chosen, form["name"].value(), form["width"].value()) == (first, "my run", 64)
    assert answer.context["chosen_template"] == row and "template-name" not in answer.redirect_chain[0][0]


def test_the_text_of_a_tokenization_stays_when_a_template_fills_the_rest(alice, client_of):
    row = template(alice.team, noun="tokenization", context_length=64)
    texts = [rows.dataset(alice.team, name) for name in "ab"]
    rows.language_model(alice.team)
    sent = {"dataset": texts[0].pk, "context_length": "32", "template": row.pk, "fill": "template"}
    form = client_of(alice).post(reverse("tokenization_new"), sent, follow=True).context["form"]
    assert (form["dataset"].value(), form["context_length"].value()) == (str(texts[0].pk), 64)


def test_what_the_address_says_counts_more_than_the_template(alice, client_of):
    row, _ = template(alice.team), rows.tokenization(alice.team)
    answer = client_of(alice).get(reverse("training_new"), {"template": row.pk, "width": "128"})
    assert answer.context["form"]["width"].value() == "128"


def test_a_site_that_another_model_does_not_have_is_replaced_by_its_middle(alice, client_of):
    row, _ = template(alice.team, site="blocks.70.hook_mlp_out"), rows.tokenization(alice.team)
    form = client_of(alice).get(reverse("training_new"), {"template": row.pk}).context["form"]
    assert form["site"].value() == "" and form.plan.training.site == "blocks.1.hook_resid_pre"


@pytest.mark.parametrize("key", ["", "0", "999", "x", "²"])
def test_a_template_that_is_not_there_leaves_the_form_as_it_is(key, alice, client_of):
    rows.tokenization(alice.team)
    answer = client_of(alice).get(reverse("training_new"), {"template": key})
    assert answer.status_code == 200 and answer.context["form"]["width"].value() == 2048


def test_templates_of_strangers_are_neither_offered_nor_taken(alice, charlie, client_of):
    row, _ = template(charlie.team, "theirs"), rows.tokenization(alice.team)
    answer = client_of(alice).get(reverse("training_new"), {"template": row.pk})
    assert "theirs" not in answer.content.decode() and answer.context["form"]["width"].value() == 2048
    assert "theirs" not in client_of(alice).get(reverse("templates")).content.decode()


def test_the_list_shows_favourites_first_and_can_be_narrowed(alice, client_of):
    template(alice.team, "a plain one")
    star = template(alice.team, "the star")
    template(alice.team, "for text", noun="tokenization", context_length=64)
    client = client_of(alice)
    client.post(reverse("template_favourite", args=[star.pk]))
    shown = [row["template"].name for row in client.get(reverse("templates")).context["rows"]]
    assert shown == ["the star", "for text", "a plain one"]
    narrowed = client.get(reverse("templates"), {"noun": "training"}).context["rows"]
    assert [row["template"].name for row in narrowed] == ["the star", "a plain one"]
    client.post(reverse("template_favourite", args=[star.pk]))
    assert not Template.objects.filter(favourite=True).exists()


def test_the_list_says_settings_as_the_form_does(alice, client_of):
    values = {"sites": ["hook_embed", "blocks.0.hook_z"], "skip_special": False, "n_tokens": 2_000_000}
    template(alice.team, "kept", noun="activationcache", stored="int8", **values)
    template(alice.team, "trained", lr=0.0003, architecture="standard")
    said = dict(pair for row in client_of(alice).get(reverse("templates")).context["rows"] for pair in row["settings"])
    assert said == {
        "Sites": "hook_embed, blocks.0.hook_z",
        "Special tokens": "stored too",
        "Tokens to read": "2,000,000",
        "Stored as": "int8 with a scale for each token, 1 byte",
        "Learning rate": "3e-4",
        "Architecture": "ReLU + L1",
    }


def test_an_empty_list_names_all_that_templates_are_for(alice, client_of):
    text = client_of(alice).get(reverse("templates")).content.decode()
    assert "(tokenization, activation cache, training, scan or evaluation)" in text


def test_the_list_asks_as_much_for_twenty_templates_as_for_two(alice, client_of):
    client = client_of(alice)
    for n in range(2):
        template(alice.team, f"t{n}")
    few = queries(client, reverse("templates"))
    for n in range(18):
        template(alice.team, f"more{n}")
    assert queries(client, reverse("templates")) == few


def test_names_and_values_are_escaped(alice, client_of):
    template(alice.team, "<script>alert(1)</script>", site="<img src=x>")
    rows.tokenization(alice.team)
    for name in ("templates", "training_new"):
        text = client_of(alice).get(reverse(name)).content.decode()
        assert "&lt;script&gt;alert(1)" in text
        assert "<script>alert" not in text and "<img src=x" not in text


def test_what_is_exported_can_be_imported_by_others(alice, charlie, client_of):
    row = template(alice.team)
    exported = client_of(alice).get(reverse("template_export", args=[row.pk]))
    assert "attachment" in exported["Content-Disposition"]
    taken_in(client_of(charlie), exported.content)
    theirs = Template.objects.get(team=charlie.team)
    assert theirs.document() == row.document() and theirs.owner == charlie


def taken_in(client, content):
    from django.core.files.uploadedfile import SimpleUploadedFile

    return client.post(reverse("templates_import"), {"file": SimpleUploadedFile("templates.json", content)})


def test_an_imported_name_that_is_taken_gets_a_number(alice, client_of):
    row = template(alice.team)
    taken_in(client_of(alice), json.dumps([row.document(), row.document()]).encode())
    assert sorted(Template.objects.values_list("name", flat=True)) == ["quick", "quick-2", "quick-3"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\x00\xff", "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b"[]", "0 templates"),
        (b"[1]", "Entry 1 is no template"),
        (b'{"noun": "training", "name": "x"}', "Entry 1 is no template"),
        (b'{"noun": "secret", "name": "x", "values": {}}', "Known are"),
        (b'{"noun": "training", "name": "", "values": {}}', "needs a name"),
        (b'{"noun": "training", "name": "a\\u0000b", "values": {}}', "needs a name"),
        (b'{"noun": "training", "name": "x", "values": {"team": 1}}', "not known here: team"),
        (b'{"noun": "training", "name": "x", "values": {"width": {"a": 1}}}', "neither text nor number"),
        (b" " * 2**18 + b"{}", "too many"),
    ],
)
def test_a_file_that_holds_no_templates_is_refused_with_the_reason(content, said, alice, client_of):
    answer = taken_in(client_of(alice), content)
    assert answer.status_code == 422 and said in answer.content.decode()
    assert not Template.objects.exists()


def test_a_deleted_template_leaves_what_was_started_from_it(alice, client_of):
    row, run = template(alice.team), rows.training(alice.team)
    client_of(alice).post(reverse("template_delete", args=[row.pk]))
    assert not Template.objects.exists() and Training.objects.filter(pk=run.pk).exists()


def test_a_command_starts_from_a_template_and_what_is_given_counts_more(alice):
    tokens = rows.tokenization(alice.team, "tokens")
    template(alice.team)
    call_command(
        "train_sae",
        "tokens",
        "--template",
        "quick",
        "--k",
        "2",
        "--no-wait",
        "--team",
        alice.team.name,
        stdout=StringIO(),
    )
    run = Training.objects.get()
    assert (run.tokenization, run.width, run.options["k"], run.lr) == (tokens, "64", "2", "0.001")


def test_a_command_says_which_templates_there_are(alice):
    rows.tokenization(alice.team, "tokens")
    template(alice.team)
    said = StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("train_sae", "tokens", "--template", "slow", "--team", alice.team.name, stdout=said, stderr=said)
    assert ended.value.code == 2 and "There are: quick" in said.getvalue()
    assert not Tokenization.objects.exclude(name="tokens").exists()


def test_the_command_lists_and_imports(alice, tmp_path):
    template(alice.team)
    said = StringIO()
    call_command("templates", "--team", alice.team.name, stdout=said)
    assert "training       quick: " in said.getvalue() and "width 64" in said.getvalue()
    document = StringIO()
    call_command("templates", "--team", alice.team.name, "--json", stdout=document)
    (tmp_path / "t.json").write_text(document.getvalue())
    call_command("templates", "--team", alice.team.name, "--import", str(tmp_path / "t.json"), stdout=said)
    assert sorted(Template.objects.values_list("name", flat=True)) == ["quick", "quick-2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--import", "/nowhere.json"], "cannot be read"),
        (["--team", "nobody's"], "There is no such team"),
        (["--import", __file__], "not JSON"),
    ],
)
def test_the_command_refuses_what_it_cannot_read(arguments, words, alice):
    said = StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("templates", *arguments, stdout=said, stderr=said)
    assert ended.value.code == 2 and words in said.getvalue()
