from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_GET, require_POST

from mistudio.forms.hub_token import HubTokenForm
from mistudio.models import HubToken
from mistudio.models.hub_token import token_of
from mistudio.views.hub import bounded


@require_GET
def account(request: HttpRequest) -> HttpResponse:
    return page(request, HubTokenForm())


def page(request: HttpRequest, form: HubTokenForm, status: int = 200) -> HttpResponse:
    return render(request, "account/detail.html", {"form": form, "stored": HubToken.of(request.user.pk)}, status=status)


@require_POST
@sensitive_post_parameters("token")
def hubtoken_store(request: HttpRequest) -> HttpResponse:
    user: Any = request.user
    form = HubTokenForm(request.POST)
    if not form.is_valid():
        return page(request, form, status=422)
    stored = HubToken.store(user, form.cleaned_data["token"])
    messages.success(request, f"Stored the token {stored.shown}. Your downloads use it from now on.")
    return redirect("account")


@require_POST
def hubtoken_remove(request: HttpRequest) -> HttpResponse:
    if stored := HubToken.of(request.user.pk):
        stored.delete()
        messages.success(request, "Removed your token of the hub.")
    return redirect("account")


@require_POST
@sensitive_variables("token")
def hubtoken_check(request: HttpRequest) -> HttpResponse:
    """Asks the hub whose it is."""
    token = token_of(request.user.pk)
    if not token:
        messages.error(request, "There is no token that could be checked. Store one first.")
        return redirect("account")
    try:
        messages.success(request, f"The hub knows this token: it belongs to {bounded(whose, token)}.")
    except OSError as error:
        messages.error(request, f"{error} {getattr(error, 'hint', '')}".strip())
    return redirect("account")


@sensitive_variables("token")
def whose(token: str, seconds: float) -> str:
    from jobs.ml.hub_preview import account_of

    return account_of(token, seconds=seconds)
