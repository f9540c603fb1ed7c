"""Trainings of many SAEs: the form that asks for them, and the pages that show them."""

import re
from dataclasses import replace
from html import unescape

import pytest
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from jobs.devices import Memory
from jobs.ml.architectures import ARCHITECTURES, build
from jobs.ml.architectures.options import OPTIONS
from jobs.models import Job, Metric, State
from mistudio.forms.training_plan import STATE_BYTES, n_parameters
from mistudio.ingest import training as ingest_training
from mistudio.models import Sae, Tokenization, Training
from mistudio.views.training import live
from tests import rows
from tests.mistudio.test_pages import queries

SITES = "blocks.0.hook_resid_post,blocks.1.hook_resid_pre"


def plain(html):
    """The words of a page, one space between them."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def planned(client, team, **asked):
    """What the fragment beside the form says of it."""
    tokens = Tokenization.objects.of_team(team).first() or rows.tokenization(team)
    answer = client.get(reverse("plan_training"), {"tokenization": tokens.pk, **asked})
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


def test_every_process_of_a_plan_needs_the_memory_of_all_its_saes(alice, client_of):
    one = STATE_BYTES * (2048 * (16 + 16 + 1) + 16) / 2**20
    page = planned(client_of(alice), alice.team, processes=4)
    assert f"{4 * one:.1f} MiB, 4 × {one:.1f} MiB, computed" in page
    assert "for 4 processes that have all SAEs each" in page


@pytest.mark.parametrize(
    ("processes", "free", "too_large"),
    [
        (1, {"CPU": 1.5}, False),
        (2, {"CPU": 1.5}, True),
        (2, {"CPU": 2.5}, False),
        (2, {"CPU": 2.5, "GPU 0": 1.5}, True),
        (1, {"CPU": 2.5, "GPU 0": 0.5}, True),
        (2, {"CPU": 0.5, "GPU 0": 1.5, "GPU 1": 1.5}, False),
        (1, {"CPU": 0.5, "GPU 0": 0.5, "GPU 1": 1.5}, False),
    ],
)
def test_processes_share_the_memory_of_the_machine_or_have_a_gpu_each(
    alice, client_of, monkeypatch, processes, free, too_large
):
    one = STATE_BYTES * (2048 * (16 + 16 + 1) + 16)
    found = [Memory(device, 0, int(share * one)) for device, share in free.items()]
    monkeypatch.setattr("mistudio.forms.training_plan.memories", lambda: found)
    page = planned(client_of(alice), alice.team, processes=processes)
    assert ("More than this machine has free" in page) == too_large
    assert ("or fewer processes, take less" in page) == (too_large and processes > 1)


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


# ---- pages of trainings with many SAEs


def sweep(team, name="sweep", n=16, measured=True, **fields):
    """A training of n SAEs, with the metrics that its job told; they are finished if it is ready."""
    widths = ",".join(str(32 * (i + 1)) for i in range(n))
    run = rows.training(team, name, width=widths, **fields)
    job = Job.objects.create(
        team=team, kind="train_sae", queue="gpu", subject=run.subject, state=State.RUNNING, params=run.params()
    )
    Training.objects.filter(pk=run.pk).update(job=job)
    if measured:
        Metric.objects.bulk_create(
            Metric(
                job=job,
                step=step,
                values={"memory": 2.0**30}
                | {f"fvu.{i}": (i + 1) / n / step for i in range(n)}
                | {f"l0.{i}": 4.0 + i for i in range(n)}
                | {f"dead.{i}": 0.5 if i else 0.0 for i in range(n)},
            )
            for step in (2, 4)
        )
    for i in range(n) if run.ready else ():
        rows.sae(team, f"{name}-{i}", training=run, number=i, width=32 * (i + 1), fvu=(i + 1) / 100, l0=2.0**i)
    return Training.objects.get(pk=run.pk)


def cells(page, label):
    """A column of the table, the best in stars."""
    found = re.findall(rf'<td class="num( best)?" data-label="{label}"><span data-tick>(.*?)</span></td>', page)
    return [f"*{plain(text)}*" if best else plain(text) for best, text in found]


@pytest.mark.parametrize("ready", [None, timezone.now()])
def test_pages_of_a_training_ask_as_much_for_sixteen_saes_as_for_one(ready, alice, client_of):
    client = client_of(alice)
    one, many = (sweep(alice.team, f"run-{n}", n, ready_at=ready) for n in (1, 16))
    client.get(one.get_absolute_url())
    few = queries(client, one.get_absolute_url())
    assert queries(client, many.get_absolute_url()) <= few <= 24
    with CaptureQueriesContext(connection) as alone:
        live(str(one.pk))
    with CaptureQueriesContext(connection) as together:
        assert f'id="training-{many.pk}"' in live(str(many.pk))
    assert len(together) <= len(alone) <= 12


def test_the_table_shows_every_sae_and_what_is_best_in_each_column(alice, client_of):
    page = client_of(alice).get(sweep(alice.team, n=4).get_absolute_url()).content.decode()
    assert cells(page, "EV") == ["*0.938*", "0.875", "0.812", "0.750"]
    assert cells(page, "L0") == ["4.0", "5.0", "6.0", "7.0"], "fewer is no merit of its own"
    assert cells(page, "Dead") == ["*0.0 %*", "50.0 %", "50.0 %", "50.0 %"]
    assert "Best explained variance 0.938 line 1, L0 4.0, last batch" in plain(page)
    assert "Memory 1.0 GiB" in plain(page) and "sort=" not in page


@pytest.mark.parametrize(
    ("n", "shown"),
    [
        (3, ["0.990", "0.990", "0.970"]),  # two of three are no exception
        (4, ["*0.990*", "*0.990*", "0.970", "0.960"]),
    ],
)
def test_nothing_is_best_where_most_are_alike(n, shown, alice, client_of):
    run = sweep(alice.team, n=n, ready_at=timezone.now())
    run.saes.filter(number=1).update(fvu=0.01)
    assert cells(client_of(alice).get(run.get_absolute_url()).content.decode(), "EV") == shown


def test_nothing_is_best_where_nothing_is_measured(alice, client_of):
    page = client_of(alice).get(sweep(alice.team, n=3, measured=False).get_absolute_url()).content.decode()
    assert cells(page, "EV") == ["–"] * 3


def test_only_saes_that_rebuild_the_same_are_compared(alice, client_of):
    run = sweep(alice.team, n=2, site=SITES, ready_at=timezone.now())
    Training.objects.filter(pk=run.pk).update(width="32")
    Sae.objects.filter(training=run).update(l0=F("number") + 4)
    page = client_of(alice).get(run.get_absolute_url()).content.decode()
    assert cells(page, "EV") == ["0.990", "0.980"]
    assert "Best explained variance 0.980 to 0.990 of the best of each site, held out" in plain(page)
    assert "among those that rebuild the same" in page and "Those that rebuild different sites" in page


def test_every_row_has_the_line_that_the_charts_draw_it_with(alice, client_of):
    page = client_of(alice).get(sweep(alice.team, n=10).get_absolute_url()).content.decode()
    keys = re.findall(r'class="swatch"[^>]*><path class="line ([^"]+)"', page)
    assert keys == [*(f"c{n}" for n in range(1, 9)), "c1 broad", "c2 broad"]
    charts = page[page.index('id="h-curves"') :]
    assert all(f'class="line {key}"' in charts for key in keys)


def test_lines_of_other_magnitudes_stand_by_their_logarithm(alice, client_of):
    run = sweep(alice.team, n=2)

    def ticks():
        page = client_of(alice).get(run.get_absolute_url()).content.decode()
        drawn = page[page.index("<h3>L0</h3>") :]
        return re.findall(r">([\d,.]+)</text>", drawn[: drawn.index("</svg>")])

    assert ticks()[:3] == ["0", "2", "4"]
    Metric.objects.create(job=run.job, step=6, values={"l0.0": 4.0, "l0.1": 484.0})
    assert ticks()[:3] == ["1", "10", "100"]


def test_finished_saes_are_linked_ordered_by_an_address_and_drawn_against_their_sparsity(alice, client_of):
    run, client = sweep(alice.team, n=4, ready_at=timezone.now()), client_of(alice)
    page = client.get(run.get_absolute_url()).content.decode()
    assert [f'href="{sae.get_absolute_url()}"' in page for sae in run.saes.all()] == [True] * 4
    assert cells(page, "EV") == ["*0.990*", "0.980", "0.970", "0.960"]
    assert "none beats 1 with 0.990 at 1.00." in page
    assert f"trainings.{run.pk}" in client.get(run.get_absolute_url()).context["topics"]
    turned = client.get(run.get_absolute_url(), {"sort": "ev"})
    assert cells(turned.content.decode(), "EV") == ["0.960", "0.970", "0.980", "*0.990*"]
    assert 'aria-sort="ascending"' in turned.content.decode()
    assert f"trainings.{run.pk}" not in turned.context["topics"], "news would take the order away"


@pytest.mark.parametrize("sort", ["magic", "-", "ev' or 1", "\0"])
def test_an_order_that_does_not_exist_leaves_that_of_the_plan(sort, alice, client_of):
    run = sweep(alice.team, n=2, ready_at=timezone.now())
    page = client_of(alice).get(run.get_absolute_url(), {"sort": sort}).content.decode()
    assert cells(page, "EV") == ["*0.990*", "0.980"]


def test_several_values_are_not_taken_for_one_number(alice, client_of):
    run = rows.training(alice.team, width="256,512", options={"k": "8,16"}, ready_at=timezone.now())
    for url in (run.get_absolute_url(), reverse("trainings")):
        page = client_of(alice).get(url).content.decode()
        assert "256, 512" in page and "256,512<" not in page and "256,512 l" not in page


def test_the_list_says_how_many_saes_a_training_has_and_how_good_the_best_is(alice, client_of):
    sweep(alice.team, n=3, ready_at=timezone.now())
    page = client_of(alice).get(reverse("trainings")).content.decode()
    assert re.search(r'data-label="SAEs">3<', page) and re.search(r'data-label="EV">0.990<', page)
    assert re.search(r'data-label="L0">1.0<', page), "of the best, not of another one"


def test_the_list_shows_from_where_to_where_the_best_of_each_site_reach(alice, client_of):
    run = sweep(alice.team, n=4, ready_at=timezone.now())
    run.saes.filter(number__gte=2).update(reads=["blocks.0.hook_resid_post"])
    page = client_of(alice).get(reverse("trainings")).content.decode()
    assert re.search(r'data-label="EV">0.970 to 0.990<', page) and re.search(r'data-label="L0">1.0 to 4.0<', page)


# ---- SAEs that diverged


def test_an_sae_that_diverges_while_others_learn_is_told_at_once_and_has_no_figures(alice, client_of):
    run = sweep(alice.team, n=3)
    Metric.objects.create(job=run.job, step=6, values={"diverged.0": 5.0, "fvu.1": 0.3, "fvu.2": 0.4})
    page = client_of(alice).get(run.get_absolute_url()).content.decode()
    assert cells(page, "EV") == ["–", "*0.700*", "0.600"] and cells(page, "L0")[0] == cells(page, "Dead")[0] == "–"
    said = "32 Diverged at step 5 of 32: start again with a lower learning rate."
    assert said in plain(page) and plain(page).count("Diverged") == 1
    assert "Best explained variance 0.700 line 2" in plain(page)


def test_the_others_of_a_training_become_saes_however_often_its_job_says_so(alice, client_of):
    run = sweep(alice.team, n=3)
    made = {"d_in": 16, "fvu": 0.2, "l0": 4.0, "ce_recovered": None, "evaluated_tokens": 900, "metrics": {}}
    result = {"steps": 32, "tokens": 8192, "saes": [made, {"diverged": 0, "message": "m", "hint": "h"}, made]}
    for _ in range(2):
        ingest_training(run.job, result)
    run = Training.objects.get(pk=run.pk)
    assert run.ready and run.result == {"steps": 32, "tokens": 8192, "diverged": {"line_2": 0}}
    assert [(sae.number, sae.width, sae.ready) for sae in run.saes.order_by("number")] == [(0, 32, True), (2, 96, True)]
    client = client_of(alice)
    page = client.get(run.get_absolute_url()).content.decode()
    assert cells(page, "EV") == ["0.800", "–", "0.800"]
    assert "64 Diverged at step 0 of 32" in plain(page) and plain(page).count("Diverged at") == 1
    assert "Diverged, line 2 0 " in plain(page), "among the values that the job reported"
    assert cells(client.get(run.get_absolute_url(), {"sort": "ev"}).content.decode(), "EV")[-1] == "–"
    assert client.get(reverse("saes")).context["page_obj"].paginator.count == 2
    assert 'data-label="EV">0.800<' in client.get(reverse("trainings")).content.decode()


def test_an_sae_has_the_options_it_was_trained_with_whatever_the_presets_are_now(alice, monkeypatch):
    run = sweep(alice.team, n=1, measured=False, architecture="gated", options={})
    begun = dict(ARCHITECTURES["gated"].presets)
    now = replace(ARCHITECTURES["gated"], presets={**begun, "gate_coefficient": 0.5})
    monkeypatch.setitem(ARCHITECTURES, "gated", now)
    ingest_training(run.job, {"saes": [{"d_in": 16}]})
    assert Sae.objects.get().options == begun and begun["gate_coefficient"] != 0.5


def test_an_sae_that_diverged_in_an_attempt_and_not_in_the_last_one_did_not_diverge(alice, client_of):
    run = sweep(alice.team, n=2, ready_at=timezone.now())
    Metric.objects.create(job=run.job, step=6, values={"diverged.0": 5.0})
    page = client_of(alice).get(run.get_absolute_url()).content.decode()
    assert "Diverged" not in page and cells(page, "EV") == ["*0.990*", "0.980"]


# ---- the list of SAEs, and the page of one


def test_the_saes_of_a_training_or_of_a_kind_are_found_in_the_list(alice, client_of):
    run, client = sweep(alice.team, n=2, ready_at=timezone.now()), client_of(alice)
    rows.sae(alice.team, "other", architecture="gated", options={"l1_coefficient": 7.0})
    url = reverse("saes")

    def names(**asked):
        return {row.name for row in client.get(url, asked).context["page_obj"]}

    assert names(training=run.pk) == {"sweep-0", "sweep-1"}
    assert names(architecture="gated") == {"other"}
    assert names(training=run.pk, architecture="gated") == set()
    assert names(training="9999") == names(architecture="magic") == {"sweep-0", "sweep-1", "other"}
    assert (
        "none is all that was asked for"
        in client.get(url, {"training": run.pk, "architecture": "gated"}).content.decode()
    )
    assert f"{url}?training={run.pk}" in client.get(run.get_absolute_url()).content.decode()
    assert "L1 coefficient 7.0" in client.get(url).content.decode()


def test_the_training_of_another_team_narrows_nothing(alice, charlie, client_of):
    theirs = sweep(charlie.team, "theirs", n=2, ready_at=timezone.now())
    page = client_of(alice).get(reverse("saes"), {"training": theirs.pk}).content.decode()
    assert "theirs" not in page


def test_the_page_of_a_crosscoder_and_of_a_transcoder_says_what_each_reads_and_writes(alice, client_of):
    sites = SITES.split(",")
    cross = rows.sae(alice.team, "cross", architecture="crosscoder", reads=sites, d_in=32)
    over = rows.sae(alice.team, "over", architecture="skip_transcoder", writes=["blocks.1.hook_z"])
    page = plain(client_of(alice).get(cross.get_absolute_url()).content.decode())
    assert f"Sites {' '.join(sites)} Kind Crosscoder k 4 d_in 32, of 2 sites side by side" in page
    page = plain(client_of(alice).get(over.get_absolute_url()).content.decode())
    assert "Reads blocks.1.hook_resid_pre Writes blocks.1.hook_z Kind Skip transcoder" in page
