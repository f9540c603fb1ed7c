import pytest
from django.apps import apps
from django.contrib import admin
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from jobs.models import Job, State
from mistudio.models import LanguageModel, User
from tests import rows

pytestmark = pytest.mark.django_db


@pytest.fixture
def root(client):
    client.force_login(User.objects.create_superuser("root"))
    return client


def changelist(model):
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")


def test_every_model_of_ours_is_in_the_admin():
    ours = [*apps.get_app_config("mistudio").get_models(), *apps.get_app_config("jobs").get_models()]
    assert ours and [model.__name__ for model in ours if model not in admin.site._registry] == []


@pytest.fixture
def filled(alice):
    sae = rows.sae(alice.team, features=3)
    rows.scan(alice.team, sae=sae)
    rows.activation_cache(alice.team, tokenization=sae.training.tokenization)
    Job.objects.create(team=alice.team, owner=alice, kind="sleepy", queue="cpu", state=State.FAILED)
    return sae


def test_every_list_and_object_of_the_admin_opens(filled, root):
    for model in admin.site._registry:
        if model._meta.app_label not in ("mistudio", "jobs"):
            continue
        assert root.get(changelist(model)).status_code == 200, model
        assert root.get(changelist(model), {"q": "x"}).status_code == 200, model
        if (row := model._default_manager.first()) is not None:
            url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[row.pk])
            assert root.get(url).status_code == 200, model


def test_a_list_of_the_admin_asks_as_much_for_twelve_rows_as_for_two(alice, root):
    def queries():
        with CaptureQueriesContext(connection) as caught:
            root.get(changelist(LanguageModel))
        return len(caught)

    for n in range(2):
        rows.language_model(alice.team, f"a{n}")
    few = queries()
    for n in range(10):
        rows.language_model(alice.team, f"b{n}")
    assert queries() <= few <= 10


def test_what_was_measured_cannot_be_typed_in(filled, root):
    url = reverse("admin:mistudio_sae_change", args=[filled.pk])
    root.post(url, {"name": "renamed", "team": filled.team_id, "owner": "", "fvu": "0.001", "l0": "1"})
    filled.refresh_from_db()
    assert (filled.name, filled.fvu) == ("renamed", 0.25)


def test_deleting_in_the_admin_takes_the_files_and_refuses_what_is_in_use(
    filled, alice, root, django_capture_on_commit_callbacks
):
    free = rows.language_model(alice.team, "free")
    free.folder.mkdir(parents=True)
    data = {"action": "delete_with_files", "_selected_action": [free.pk, filled.language_model.pk]}
    asked = root.post(changelist(LanguageModel), data).content.decode()
    assert "cannot be undone" in asked and "free" in asked and free.folder.exists()
    with django_capture_on_commit_callbacks(execute=True):
        text = root.post(changelist(LanguageModel), {**data, "sure": "yes"}, follow=True).content.decode()
    assert "is used by" in text and "1 deleted, with their files." in text and not free.folder.exists()
    assert set(LanguageModel.objects.values_list("pk", flat=True)) == {filled.language_model.pk}


def test_a_new_person_is_in_the_default_team(root):
    data = {
        "username": "dora",
        "usable_password": "true",
        "password1": "correct horse 1",
        "password2": "correct horse 1",
    }
    address = reverse("admin:mistudio_user_add")
    assert "membership" not in root.get(address).content.decode().split("<form", 2)[-1]
    assert root.post(address, data).status_code == 302
    assert User.objects.get(username="dora").team is not None


def test_verify_says_what_is_missing(alice, root):
    gone = rows.language_model(alice.team, "gone", files=[{"name": "config.json", "bytes": 2, "sha256": "x"}])
    data = {"action": "verify", "_selected_action": [gone.pk]}
    text = root.post(changelist(LanguageModel), data, follow=True).content.decode()
    assert "config.json is missing" in text


def test_people_who_are_no_administrators_do_not_get_in(alice, client_of):
    assert client_of(alice).get("/admin/").status_code == 302
