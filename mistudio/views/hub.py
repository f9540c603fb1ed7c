"""What the hub says of an id before anything is fetched. The request is bounded whatever the hub does."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_GET

from jobs.errors import InvalidInput
from jobs.kinds.sources import check_source, is_path
from mistudio.models.hub_token import token_of
from mistudio.views.artifact import address

NEW = {"model": "languagemodel_new", "dataset": "dataset_new"}
SECONDS = 8.0
FILES_SHOWN = 200
# A hub that does not answer holds these threads and no others; who comes while all are held waits no longer either.
LOOKING = ThreadPoolExecutor(4, thread_name_prefix="hub look-up")


@require_GET
def preview(request: HttpRequest, kind: str) -> HttpResponse:
    """The fragment, for htmx. The address of the page comes to hold what was looked up."""
    if kind not in NEW:
        raise Http404
    response = render(request, f"hub/_{kind}.html", look_up(request, kind))
    response["HX-Replace-Url"] = address(reverse(NEW[kind]), request.GET, look=1)
    return response


def look_first(request: HttpRequest) -> HttpResponse:
    """The button without JavaScript: the same page, with what was typed and what the hub says of it in its address."""
    return redirect(address(request.path, request.POST, look=1))


def looked_up(request: HttpRequest, kind: str) -> dict[str, Any]:
    """For the page that offers the form: what was looked up, where its address asks for it."""
    asked = request.method == "GET" and request.GET.get("look")
    return look_up(request, kind) if asked else {"look": {"kind": kind}}


def look_up(request: HttpRequest, kind: str) -> dict[str, Any]:
    source = request.GET.get("source", "").strip()
    revision = request.GET.get("revision", "").strip()
    look: dict[str, Any] = {"kind": kind, "source": source, "path": is_path(source)}
    if source and not look["path"]:
        try:
            check_source(source, revision, "/", kind)
            look |= found(kind, source, revision[:200], token_of(request.user.pk))
        except (InvalidInput, OSError) as error:
            look |= {"trouble": str(error), "hint": getattr(error, "hint", "")}
    return {"look": look}


@sensitive_variables()
def bounded(ask: Callable[..., Any], *arguments: str) -> Any:
    """What `ask(*arguments, seconds)` gives. Raises what it raises, and TimeoutError."""
    looking = LOOKING.submit(ask, *arguments, SECONDS)
    try:
        return looking.result(SECONDS + 1)
    except TimeoutError:
        looking.cancel()
        raise TimeoutError(f"The hub has not answered within {SECONDS:.0f} s. Try again.") from None


@sensitive_variables("token")
def found(kind: str, source: str, revision: str, token: str) -> dict[str, Any]:
    """Raises HubError, an OSError."""
    seen = bounded(ask, kind, source, revision, token)
    from jobs.ml.disk import RESERVE, size

    free = shutil.disk_usage(settings.MISTUDIO_DATA).free
    rate = settings.DOWNLOAD_RATE
    seconds = seen.taken_bytes / rate if rate else None
    missing = max(0, seen.taken_bytes + RESERVE - free)
    return {
        "seen": seen,
        "free": free,
        "missing": missing,
        "rate": rate and size(rate),
        "seconds": seconds,
        "shown": FILES_SHOWN,
        "shown_slice": f":{FILES_SHOWN}",
    }


@sensitive_variables("token")
def ask(kind: str, source: str, revision: str, token: str, seconds: float) -> Any:
    from jobs.ml.hub_preview import preview as ask_hub  # late: its client takes a quarter of a second to import

    return ask_hub(kind, source, revision, token=token, seconds=seconds)
