from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from mistudio.forms.activation_cache import ActivationCacheForm
from mistudio.models import ActivationCache
from mistudio.models.artifact import InUse
from mistudio.outliers import norm_figure, outliers
from mistudio.views.artifact import again, creation, deletion, found, listing, owned, started, topics


@require_GET
def activationcaches(request: HttpRequest) -> HttpResponse:
    rows = owned(request, ActivationCache).select_related("language_model", "tokenization")
    return listing(request, rows, "activation_cache/list.html")


@require_GET
def activationcache(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, ActivationCache, pk, "language_model", "tokenization__dataset")
    statistics: dict[str, Any] = row.result.get("statistics", {})
    site = request.GET.get("site", "")
    chosen = site if site in statistics else next(iter(statistics), "")
    context = {
        "object": row,
        "job": row.job,
        "users": row.users(),
        "again": again(row, ActivationCacheForm),
        "topics": topics(row),
        "statistics": statistics,
        "site": chosen,
        **(of_site(row, chosen, statistics[chosen]) if chosen else {}),
    }
    return render(request, "activation_cache/detail.html", context)


def of_site(row: ActivationCache, site: str, statistics: dict[str, Any]) -> dict[str, Any]:
    return {
        "measured_of": statistics,
        "figure": norm_figure(site, statistics),
        "outliers": outliers(row, statistics),
    }


@require_http_methods(["GET", "POST"])
def activationcache_new(request: HttpRequest) -> HttpResponse:
    return creation(request, ActivationCacheForm, "activation_cache/new.html")


@require_GET
def estimate(request: HttpRequest) -> HttpResponse:
    """The fragment that follows the form while it is filled in."""
    user: Any = request.user
    form = ActivationCacheForm(request.GET, team=user.team, owner=user)
    return render(request, "activation_cache/_estimate.html", {"form": form, "estimate": form.estimate})


@require_POST
def activationcache_make(request: HttpRequest, pk: int) -> HttpResponse:
    """Check the files and compute what is missing: also the way back from an eviction."""
    row = found(request, ActivationCache, pk, "language_model", "tokenization")
    return started(request, row, row.start)


@require_POST
def activationcache_evict(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, ActivationCache, pk)
    try:
        row.evict()
    except InUse as refused:
        messages.error(request, f"{row} is in use by {', '.join(refused.users)}. Wait for it, or cancel it first.")
    else:
        messages.success(request, f"Deleted the files of “{row}”. “Make again” computes them anew.")
    return redirect(row)


@require_POST
def activationcache_delete(request: HttpRequest, pk: int) -> HttpResponse:
    return deletion(request, ActivationCache, pk)
