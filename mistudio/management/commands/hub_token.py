import sys
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from mistudio.forms.hub_token import HubTokenForm
from mistudio.models import HubToken, User
from mistudio.models.hub_token import token_of


def show(user: User) -> str:
    stored = HubToken.of(user.pk)
    if stored is None:
        return f"{user} has stored no token."
    state = "" if stored.readable else "; it cannot be read any more, because the secret key has changed"
    return f"{stored.shown}, stored {stored.stored_at:%Y-%m-%d %H:%M} UTC{state}."


def store(user: User) -> str:
    form = HubTokenForm({"token": sys.stdin.readline()})
    if not form.is_valid():
        raise CommandError(" ".join(map(str, form.errors["token"])))
    return f"Stored the token {HubToken.store(user, form.cleaned_data['token']).shown}."


def check(user: User) -> str:
    from jobs.ml.hub_preview import account_of

    if not (token := token_of(user.pk)):
        raise CommandError(show(user))
    try:
        return f"The hub knows this token: it belongs to {account_of(token)}."
    except OSError as error:
        raise CommandError(f"{error} {getattr(error, 'hint', '')}".strip()) from None


def remove(user: User) -> str:
    stored = HubToken.of(user.pk)
    if stored is None:
        return show(user)
    stored.delete()
    return f"Removed the token {stored.shown}."


ACTIONS: dict[str, Callable[[User], str]] = {"show": show, "store": store, "check": check, "remove": remove}


class Command(BaseCommand):
    help = "Store, check or remove a person's token of the hub. A token is read from standard input, never an argument."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("action", nargs="?", choices=list(ACTIONS), default="show")
        parser.add_argument("--user", required=True, help="username of the person")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["user"]).first()
        if user is None:
            raise CommandError(f"There is no user “{options['user']}”.")
        self.stdout.write(ACTIONS[options["action"]](user))
