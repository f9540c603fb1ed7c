import ast
from pathlib import Path

import pytest
from django.urls import get_resolver, reverse

from jobs.models import Job
from mistudio.models import Template, Upload
from tests import rows

pytestmark = pytest.mark.django_db
VIEWS = sorted((Path(__file__).resolve().parents[2] / "mistudio" / "views").glob("*.py"))


@pytest.fixture
def everything(alice):
    """One of each thing, all of alice's team, as arguments for the addresses that show them."""
    team = alice.team
    sae = rows.sae(team, features=3)
    scan = rows.scan(team, sae=sae)
    job = Job.objects.create(team=team, owner=alice, kind="sleepy", queue="cpu", title="secret job")
    training = sae.training
    cache = rows.activation_cache(team, "sae-run-cache", tokenization=training.tokenization)
    pks = {
        "languagemodel": sae.language_model.pk,
        "dataset": training.tokenization.dataset.pk,
        "tokenization": training.tokenization.pk,
        "activationcache": cache.pk,
        "training": training.pk,
        "sae": sae.pk,
        "scan": scan.pk,
        "evaluation": rows.evaluation(team, sae=sae).pk,
        "export": rows.export(team, sae=sae).pk,
        "job": job.pk,
        "template": Template.objects.create(team=team, noun="training", name="secret template").pk,
        "upload": Upload.objects.create(team=team, owner=alice, name="secret.txt", size=9, received=5).pk,
    }
    return {"sae": sae, **{f"{noun}_pk": pk for noun, pk in pks.items()}}


def object_urls(everything):
    """Every address of the site that names an object."""
    sae = everything["sae"]
    special = {
        "features": [sae.pk],
        "feature": [sae.pk, 1],
        "feature_label": [sae.pk, 1],
        "scan_new": [sae.pk],
        "evaluation_new": [sae.pk],
        "export_new": [sae.pk],
        "documents": [everything["dataset_pk"]],
        "document": [everything["dataset_pk"], 0],
        "document_next": [everything["dataset_pk"], 0],
        "document_previous": [everything["dataset_pk"], 0],
    }
    found = {}
    for name in get_resolver().reverse_dict:
        if not isinstance(name, str):
            continue
        noun = name.split("_")[0]
        if name in special:
            found[name] = reverse(name, args=special[name])
        elif f"{noun}_pk" in everything and not name.endswith("_new"):
            found[name] = reverse(name, args=[everything[f"{noun}_pk"]])
    return found


def test_a_stranger_finds_nothing_at_any_address_of_anothers_object(everything, charlie, client_of):
    client, urls = client_of(charlie), object_urls(everything)
    assert len(urls) >= 23
    for url in urls.values():
        assert client.get(url).status_code in (404, 405), url
        assert client.post(url).status_code in (404, 405), url
    assert Job.objects.get(pk=everything["job_pk"]).state == "queued"


def test_a_stranger_sees_none_of_it_in_any_list(everything, charlie, client_of):
    client = client_of(charlie)
    for name in (
        "home",
        "languagemodels",
        "datasets",
        "tokenizations",
        "activationcaches",
        "trainings",
        "saes",
        "jobs",
        "operations",
        "templates",
    ):
        text = client.get(reverse(name)).content.decode()
        assert "secret" not in text and "sae-run" not in text, name


def test_a_teammate_sees_what_the_owner_sees(everything, bob, client_of):
    client = client_of(bob)
    for noun in (
        "languagemodel",
        "dataset",
        "tokenization",
        "activationcache",
        "training",
        "sae",
        "scan",
        "evaluation",
        "export",
        "job",
    ):
        assert client.get(reverse(noun, args=[everything[f"{noun}_pk"]])).status_code == 200, noun


def test_nothing_is_shown_before_signing_in(everything, client):
    for name, url in object_urls(everything).items():
        answer = client.get(url)
        assert answer.status_code == 405 or answer.url.startswith("/login/"), name


@pytest.mark.parametrize("path", VIEWS, ids=lambda path: path.name)
def test_views_reach_rows_through_a_team_only(path):
    """`.objects` is followed by `.of_team`, but for the few places named here with their reason."""
    allowed = {
        ("home.py", "filter"),  # features through sae__team; a topic's key that visible() checked
        ("training.py", "select_related"),  # live(): reached only by pages that visible() let in
        ("shell.py", "filter"),  # the last event of the jobs of the team that asks
        # workers, alerts and pauses of queues belong to the installation
        *(("shell.py", name) for name in ("alive", "loud", "values_list", "order_by")),
        ("account.py", "get"),  # a signed link, before anyone is signed in
        ("monitor.py", "order_by"),  # hosts belong to the installation
        ("monitor.py", "filter"),
        ("attribution.py", "filter"),
        ("alert.py", "select_related"),  # alerts too
        ("alert.py", "filter"),
        ("feature.py", "get"),  # the row that was just found within the team
    }
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "objects":
            assert node.attr == "of_team" or (path.name, node.attr) in allowed, f"{path.name}:{node.lineno}"
