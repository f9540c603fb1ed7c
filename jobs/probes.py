"""What machines ask of a web process: does it live (/healthz), can it serve (/readyz), its figures (/metrics).

A middleware before all others: a load balancer asks by address instead of by name, has no session, and must get an
answer while the database is away."""

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from django.conf import settings
from django.core.cache import cache
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, HttpResponseNotFound, JsonResponse
from django.utils.crypto import constant_time_compare
from django.views.decorators.http import require_safe

from jobs import metrics
from jobs.schema import unapplied

KEPT = 1  # seconds: however often it is asked, readiness costs no more than one look
looking = threading.Lock()


def probes(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: answers the probes, and counts all other answers."""

    def respond(request: HttpRequest) -> HttpResponse:
        if probe := PROBES.get(request.path_info.rstrip("/")):
            response = probe(request)
            response.headers["Cache-Control"] = "no-store"
            return response
        start = time.monotonic()
        response = get_response(request)
        metrics.count_response(response.status_code, time.monotonic() - start)
        return response

    return respond


@require_safe
def healthz(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ok\n", content_type="text/plain")


@require_safe
def readyz(request: HttpRequest) -> JsonResponse:
    with looking:
        lacking = cache.get_or_set("not_ready", not_ready, KEPT)
    return JsonResponse({"ready": not lacking, "not_ready": lacking}, status=503 if lacking else 200)


def not_ready() -> list[str]:
    """In words for whoever may ask: no path, no address, nothing that an error of the database may quote."""
    return [why for why in (database(), data_folder()) if why]


def database() -> str:
    try:
        missing = unapplied()
    except DatabaseError:
        return "database: does not answer"
    return f"migrations: {len(missing)} not applied, run: mistudio migrate" if missing else ""


def data_folder() -> str:
    why = unwritable(settings.MISTUDIO_DATA)
    return f"data folder: cannot be written, {why}" if why else ""


def unwritable(folder: Path) -> str:
    """Why not; empty where it can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"1")
    except OSError as error:
        return error.strerror or str(error)
    return ""


@require_safe
def figures(request: HttpRequest) -> HttpResponse:
    if not settings.METRICS_TOKEN:
        return HttpResponseNotFound()
    said = request.headers.get("Authorization", "")
    if not constant_time_compare(said, f"Bearer {settings.METRICS_TOKEN}"):
        return HttpResponse(status=401, headers={"WWW-Authenticate": "Bearer"})
    return HttpResponse(metrics.exposition(metrics.families()), content_type=metrics.CONTENT_TYPE)


PROBES: dict[str, Callable[[HttpRequest], HttpResponse]] = {
    "/healthz": healthz,
    "/readyz": readyz,
    "/metrics": figures,
}
