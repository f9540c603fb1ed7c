"""The partial templates that every page is made of."""

from types import SimpleNamespace

import pytest
from django import forms
from django.core.paginator import Paginator
from django.template.loader import get_template
from django.test import RequestFactory

from mistudio.models import Training


def part(name, path="/models/", **context):
    return get_template(name).render(context, RequestFactory().get(path))


class Sample(forms.Form):
    width = forms.IntegerField(help_text="Usual: 8 to 32.", min_value=1)
    name = forms.CharField(required=False)
    kind = forms.ChoiceField(choices=[("a", "A"), ("b", "B")], widget=forms.RadioSelect, required=False)
    agree = forms.BooleanField(required=False)


def field(data, name="width", **context):
    return part("_field.html", field=Sample(data)[name], **context)


def test_a_field_ties_its_help_and_its_error_to_its_control():
    html = field({"width": "wide"})
    assert 'aria-invalid="true"' in html
    assert 'aria-describedby="id_width_helptext id_width_error"' in html
    assert 'id="id_width_error"' in html and 'id="id_width_helptext"' in html
    assert "Enter a whole number." in html and 'for="id_width"' in html


def test_a_wrong_field_keeps_what_was_typed_and_escapes_it():
    html = field({"width": '"><script>'})
    assert 'value="&quot;&gt;&lt;script&gt;"' in html and "<script" not in html


def test_a_field_that_is_right_says_nothing_of_errors():
    html = field({"width": "5"}, unit="latents", width="w6")
    assert "aria-invalid" not in html and "_error" not in html
    assert "latents" in html and 'class="field w6' in html


def test_only_an_empty_field_that_may_stay_empty_is_optional():
    assert "optional" in field({}, "name")
    assert "optional" not in field({"name": "x"}, "name")
    assert "optional" not in field({}, "width")


def test_choices_and_ticks_have_their_own_shape():
    assert "<fieldset" in field({}, "kind") and "<legend" in field({}, "kind")
    assert field({}, "agree").count("<label") == 1


def test_errors_of_a_form_link_to_their_fields():
    form = Sample({"width": "x"})
    form.add_error(None, "Nothing <b>fits</b>.")
    html = part("_form_errors.html", form=form)
    assert 'href="#id_width"' in html and "Nothing &lt;b&gt;fits&lt;/b&gt;." in html and 'role="alert"' in html
    assert part("_form_errors.html", form=Sample({"width": "5"})).strip() == ""


def test_a_pager_keeps_the_filter_and_says_where_one_is():
    page = Paginator(range(1204), 50).get_page(2)
    html = part("_pager.html", "/models/?q=a%20b&page=2", page_obj=page, noun="models")
    assert "51–100 of 1,204 models" in html
    assert 'href="?q=a+b&amp;page=1"' in html and 'href="?q=a+b&amp;page=3"' in html


def test_the_first_and_the_last_page_have_one_direction():
    pages = Paginator(range(60), 50)
    assert 'rel="prev"' not in part("_pager.html", page_obj=pages.get_page(1))
    assert 'rel="next"' not in part("_pager.html", page_obj=pages.get_page(2))
    assert part("_pager.html", page_obj=Paginator([], 50).get_page(1)).strip() == ""


def test_deleting_says_what_is_lost_and_asks_again():
    thing = SimpleNamespace(NOUN="dataset", size_bytes=2048, ready=True, __str__=lambda: "x")
    html = part("_confirm_delete.html", object=thing, action="/datasets/1/delete/", lost="with its labels")
    assert "2.0 KiB" in html and "with its labels" in html and "cannot be undone" in html
    assert 'method="post" action="/datasets/1/delete/"' in html and html.count("<button") == 1


def test_what_is_needed_by_others_offers_no_button_to_delete():
    thing = SimpleNamespace(NOUN="dataset", size_bytes=1, ready=True)
    html = part("_confirm_delete.html", object=thing, action="/x/", users=[Training(name="<b>")])
    assert "<form" not in html and "training “&lt;b&gt;”" in html and "Delete it first." in html
    busy = part("_confirm_delete.html", object=SimpleNamespace(ready=False), job=SimpleNamespace(unfinished=True))
    assert "<form" not in busy and "Cancel the job first" in busy


def job(**fields):
    known = {"state": "running", "percent": 62.44, "eta_seconds": 4320, "rate": 43_612, "unit": "tokens", "done": 312e6}
    return SimpleNamespace(
        **{"kind": "train_sae", "total": 500e6, "stage": "train", "stalled": False, "title": "run", **known, **fields}
    )


def test_progress_says_how_much_is_done_how_fast_and_how_long_it_takes():
    html = part("_progress.html", job=job())
    assert '62.4<span class="unit">%</span>' in html and 'value="62.44"' in html
    assert "about 1 h 12 min left" in html and "43.6 k tokens/s" in html and "312 M of 500 M tokens" in html


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"eta_seconds": None}, "time left unknown"),
        ({"stalled": True, "progress_at": None}, "no progress"),
        ({"percent": 99.99}, "&gt; 99.9"),
        ({"unit": "bytes", "done": 2**30, "total": 2**31}, "1.0 GiB of 2.0 GiB"),
    ],
)
def test_progress_claims_no_more_than_is_known(fields, words):
    assert words in part("_progress.html", job=job(**fields))


def test_stages_say_which_are_done_and_which_runs():
    stages = [{"name": n, "state": s} for n, s in (("load", "done"), ("train", "running"), ("evaluate", "todo"))]
    html = part("_progress.html", job=job(stages=stages))
    assert html.count('class="done"') == 1 and html.count('aria-current="step"') == 1 and "#i-todo" in html
    assert "#i-fail" in part("_progress.html", job=job(stages=stages, state="failed"))


def test_a_command_can_be_copied_and_is_escaped():
    html = part("_command.html", command="mistudio add_model '<b>'")
    assert 'data-copy="command"' in html and 'id="command"' in html and "&lt;b&gt;" in html
    assert part("_command.html", command="").strip() == ""


def test_a_message_has_its_tone_in_words_too():
    message = SimpleNamespace(level_tag="error", __str__=lambda: "x")
    html = part("_messages.html", messages=[message])
    assert "is-fail" in html and 'aria-label="Failed"' in html and 'role="status"' in html


def test_an_empty_list_offers_the_one_button_that_fills_it():
    html = part("_empty.html", title="No models", text="Text.", url="/models/new/", action="Add model")
    assert html.count("<a ") == 1 and 'href="/models/new/"' in html
    assert "<a " not in part("_empty.html", title="None", text="Text.", why="The dataset is not ready.")


def test_a_filter_that_finds_nothing_leads_back_to_all():
    html = part("_no_match.html", "/models/?q=<b>", q="<b>", what="models", total=5)
    assert "&lt;b&gt;" in html and 'href="/models/"' in html and "5 models exist" in html
