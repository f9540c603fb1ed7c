import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Permission
from django.urls import reverse

from jobs.models import Job, State
from mistudio.models import Dataset, LanguageModel, Upload, User
from tests import rows
from tests.mistudio.test_pages import queries

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
    rows.evaluation(alice.team, sae=sae)
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
    for n in range(2):
        rows.language_model(alice.team, f"a{n}")
    few = queries(root, changelist(LanguageModel))
    for n in range(10):
        rows.language_model(alice.team, f"b{n}")
    assert queries(root, changelist(LanguageModel)) <= few <= 10


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
    gone = rows.dataset(alice.team, "gone")
    data = {"action": "verify", "_selected_action": [gone.pk]}
    text = root.post(changelist(Dataset), data, follow=True).content.decode()
    assert "manifest.json is missing" in text


def test_a_model_is_verified_by_a_job_that_keeps_what_it_finds(alice, root):
    files = [{"name": "config.json", "bytes": 2, "sha256": "x"}]
    ready, unready = rows.language_model(alice.team, "ready", files=files), rows.language_model(alice.team, "unready")
    LanguageModel.objects.filter(pk=unready.pk).update(ready_at=None)
    data = {"action": "verify", "_selected_action": [ready.pk, unready.pk]}
    text = root.post(changelist(LanguageModel), data, follow=True).content.decode()
    job = Job.objects.get(kind="verify_model")
    assert (job.subject, job.owner.username, job.params["files"]) == (ready.subject, "root", files)
    assert "“unready” is not ready. Wait" in text and "1 of 2 are being verified" in text


@pytest.mark.parametrize("noun", ["languagemodel", "upload"])
def test_what_deletes_files_needs_the_permission_to_delete(noun, alice, client_of):
    alice.is_staff = True
    alice.save()
    mine = {"languagemodel": rows.language_model, "upload": upload}[noun](alice.team)
    action = {"languagemodel": "delete_with_files", "upload": "delete_with_file"}[noun]
    client, url = client_of(alice), reverse(f"admin:mistudio_{noun}_changelist")

    def offered(*rights):
        alice.user_permissions.set(Permission.objects.filter(codename__in=[f"{right}_{noun}" for right in rights]))
        assert client.get(url).status_code == 200
        client.post(url, {"action": action, "_selected_action": [mine.pk], "sure": "yes"})
        return not type(mine)._default_manager.filter(pk=mine.pk).exists()

    assert not offered("view", "change")
    assert offered("view", "delete")


def upload(team):
    return Upload.objects.create(team=team, name="texts.txt", size=9, received=5)


def test_people_who_are_no_administrators_do_not_get_in(alice, client_of):
    assert client_of(alice).get("/admin/").status_code == 302
