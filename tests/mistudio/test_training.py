"""Trainings of many SAEs: the form that asks for them, and the pages that show them."""

import re
from html import unescape

import pytest
from django.urls import reverse

from jobs.ml.architectures import ARCHITECTURES, build
from jobs.ml.architectures.options import OPTIONS
from mistudio.forms.training_plan import STATE_BYTES, n_parameters
from mistudio.models import Tokenization, Training
from tests import rows

SITES = "blocks.0.hook_resid_post,blocks.1.hook_resid_pre"


def plain(html):
    """The words of a page, one space between them."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def planned(client, team, **asked):
    """What the fragment beside the form says of it."""
    tokens = Tokenization.objects.of_team(team).first() or rows.tokenization(team)
    answer = client.get(reverse("training_plan"), {"tokenization": tokens.pk, **asked})
    assert answer.status_code == 200
    return plain(answer.content.decode())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "1 SAE TopK of blocks.1.hook_resid_pre , 2,048 latents"),
        ({"width": "32,64", "k": "4,8,16", "seed": "0,1"}, "12 SAEs : 2 widths × 3 values of k × 2 seeds"),
        ({"architecture": ["topk", "batchtopk"], "k": "4,8"}, "4 SAEs : 2 architectures × 2 values of k"),
        ({"architecture": ["topk", "jumprelu"], "k": "4,8"}, "3 SAEs 2 TopK: 2 values of k 1 JumpReLU"),
        ({"architecture": ["topk", "crosscoder"], "site": SITES.split(",")}, "3 SAEs 2 TopK: 2 sites 1 Crosscoder"),
        ({"architecture": "jumprelu", "k": "4,8"}, "1 SAE JumpReLU"),
        ({"site": "module:model.layers.0.mlp"}, "Memory computed once the model runs"),
        ({"width": "32,many"}, "Width: Enter a whole number: “many” is none."),
        ({"width": "32,64,128", "k": "1,2,3", "seed": "0,1,2", "lr": "1,2,3"}, "That would be 81 SAEs at once"),
    ],
)
def test_the_form_says_how_many_saes_it_asks_for_and_what_multiplies(alice, client_of, asked, said):
    assert said in planned(client_of(alice), alice.team, **asked)
    assert not Training.objects.exists(), "looking starts nothing"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_parameters_that_a_form_counts_are_those_of_the_engine(name):
    architecture = ARCHITECTURES[name]
    reads = ["a", "b"] if architecture.spans else ["a"]
    writes = ["b"] if architecture.transcodes else []
    widths = {"a": 6, "b": 10}
    d_in, d_out = (sum(widths[site] for site in side) for side in (reads, writes or reads))
    sae = build(name, d_in, 12, d_out=d_out, parts=[widths[site] for site in reads], **architecture.presets)
    counted = n_parameters({"architecture": name, "width": 12, "reads": reads, "writes": writes}, widths.get)
    assert counted == sum(parameter.numel() for parameter in sae.parameters())


def test_the_memory_of_a_plan_is_computed_from_its_parameters_and_called_so(alice, client_of):
    one = 2048 * (16 + 16 + 1) + 16
    assert f"{2 * one * STATE_BYTES / 2**20:.1f} MiB, computed" in planned(client_of(alice), alice.team, seed="0,1")


def test_more_than_the_machine_has_free_is_said_before_it_starts(alice, client_of, monkeypatch):
    assert "More than this machine has free" not in planned(client_of(alice), alice.team)
    monkeypatch.setattr("mistudio.forms.training_plan.memories", list)
    assert "More than this machine has free" in planned(client_of(alice), alice.team)


def test_every_option_stands_once_under_the_architectures_that_have_it(alice, client_of):
    rows.tokenization(alice.team)
    form = client_of(alice).get("/trainings/new/").context["form"]
    groups = form.option_groups
    assert sorted(field.name for group in groups for field in group.fields) == sorted(OPTIONS)
    for group in groups:
        for field in group.fields:
            assert set(group.names.split()) == {n for n, one in ARCHITECTURES.items() if field.name in one.presets}


def test_the_presets_of_options_are_seen_before_anything_is_typed(alice, client_of):
    rows.tokenization(alice.team)
    page = client_of(alice).get("/trainings/new/").content.decode()
    for name, preset in (
        ("k", "32"),
        ("levels", "5"),
        ("aux_coefficient", "0.03125 or 0"),
        ("dead_coefficient", "3e-06"),
    ):
        assert re.search(rf'<input[^>]*name="{name}"[^>]*placeholder="{preset}"', page), name
    assert "None ticked: quadratic." in page


def test_a_wrong_value_leaves_all_that_was_typed_and_ticked_and_is_not_hidden(alice, client_of):
    tokens = rows.tokenization(alice.team)
    sent = {
        "tokenization": tokens.pk, "site": [*SITES.split(","), "blocks.1.hook_z.1"], "architecture": ["topk", "gated"],
        "width": "32, 64", "k": "4, 8", "bandwidth": "wide", "l0_loss": ["tanh"], "writes": "blocks.0.hook_z",
        "lr": "1e-3", "seed": "3,4", "n_tokens": "5000",
    }  # fmt: skip
    answer = client_of(alice).post("/trainings/new/", sent)
    assert answer.status_code == 422
    page = answer.content.decode()
    for name in ("width", "k", "bandwidth", "writes", "lr", "seed", "n_tokens"):
        assert re.search(rf'name="{name}" value="{sent[name]}"', page), name
    for name, value in [("site", one) for one in SITES.split(",")] + [
        ("architecture", "topk"),
        ("architecture", "gated"),
    ]:
        assert re.search(rf'name="{name}" value="{value}" checked', page), value
    assert 'value="blocks.1.hook_z.1"' in page and re.search(r'value="tanh"[^>]* checked', page)
    wrong = page[: page.index('name="bandwidth"')].rsplit("<fieldset", 1)[1]
    assert "data-when" not in wrong.split(">")[0], "it would be hidden with JumpReLU not ticked"


def test_what_an_architecture_that_is_not_ticked_was_given_is_not_kept(alice, client_of):
    tokens = rows.tokenization(alice.team)
    sent = {"tokenization": tokens.pk, "architecture": "topk", "k": "4", "l1_coefficient": "7"}
    assert client_of(alice).post("/trainings/new/", sent).status_code == 302
    assert Training.objects.get().options == {"k": "4"}


def test_a_name_is_made_of_what_varies_and_stays_short(alice, client_of):
    tokens = rows.tokenization(alice.team)
    sent = {
        "tokenization": tokens.pk,
        "site": SITES.split(","),
        "architecture": ["topk", "gated"],
        "width": "8,16,32,64",
        "k": "4",
    }
    assert client_of(alice).post("/trainings/new/", sent).status_code == 302
    assert Training.objects.get().name == "tokens-model-L0-resid_post+1-topk+gated-8+3"
