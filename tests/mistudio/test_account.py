import json
from urllib.parse import urlsplit

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from mistudio.models import Team, User
from mistudio.views.account import links

pytestmark = pytest.mark.django_db


def made_link(capsys, *args):
    call_command("createadmin", *args, "--json")
    return urlsplit(json.loads(capsys.readouterr().out)["link"])


def test_the_first_administrator_signs_in_once_with_the_link(capsys):
    path = made_link(capsys).path
    first, second = Client(), Client()
    assert first.get(path).url == "/"
    assert first.get("/").status_code == 200
    assert second.get(path).status_code == 410
    assert second.get("/").url.startswith("/login/")


def test_the_same_browser_may_open_its_link_again(capsys):
    path, browser = made_link(capsys).path, Client()
    browser.get(path)
    assert browser.get(path).url == "/"


def test_a_changed_or_foreign_token_signs_nobody_in(alice, bob, client):
    path = links.path(alice)
    key, token = path.strip("/").split("/")[1:]
    other = links.path(bob).strip("/").split("/")[1]
    for wrong in (f"/login/{key}/{token[:-1]}x/", f"/login/{other}/{token}/", f"/login/zzz/{token}/"):
        assert client.get(wrong).status_code == 410, wrong
    alice.is_active = False
    alice.save()
    assert client.get(path).status_code == 410


def test_a_second_administrator_command_makes_no_second_person(capsys):
    made_link(capsys)
    made_link(capsys)
    assert User.objects.filter(username="admin").count() == 1


def test_a_link_is_never_made_for_somebody_who_is_no_administrator(alice):
    with pytest.raises(CommandError, match="no active administrator"):
        call_command("createadmin", "--username", alice.username)


def test_everyone_is_in_the_default_team_from_the_start():
    person = User.objects.create_user("dora")
    assert person.team == Team.default()


def test_a_password_signs_in_too(alice, client):
    alice.set_password("correct horse battery")
    alice.save()
    wrong = client.post("/login/", {"username": alice.username, "password": "nope"})
    assert wrong.status_code == 200 and b"password" in wrong.content
    right = client.post("/login/", {"username": alice.username, "password": "correct horse battery"})
    assert right.url == "/"


def test_signing_out_is_a_post_and_ends_the_session(alice, client_of):
    client = client_of(alice)
    assert client.get("/logout/").status_code == 405
    client.post("/logout/")
    assert client.get("/").url.startswith("/login/")


def test_the_theme_is_kept_in_a_cookie_and_leads_back(alice, client_of):
    client = client_of(alice)
    assert client.post("/theme/", {"theme": "dark", "next": "/models/"}).url == "/models/"
    assert 'data-theme="dark"' in client.get("/models/").content.decode()
    assert client.post("/theme/", {"theme": "pink", "next": "https://evil.example/"}).url == "/"
    assert client.cookies["theme"].value == "dark"
