from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.safestring import SafeString
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from mistudio.figures.lengths import length_histogram
from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.tokenization import TokenizationForm
from mistudio.models import Tokenization
from mistudio.preview import preview
from mistudio.views.artifact import again, creation, deletion, found, listing, owned, topics
from mistudio.vocabulary import piece, read_vocabulary

PASTED = 2000  # characters of a text to be looked at


@require_GET
def tokenizations(request: HttpRequest) -> HttpResponse:
    return listing(
        request,
        owned(request, Tokenization).select_related("dataset", "language_model"),
        "tokenization/list.html",
    )


@require_GET
def tokenization(request: HttpRequest, pk: int) -> HttpResponse:
    row = found(request, Tokenization, pk, "dataset", "language_model")
    context = {
        "object": row,
        "job": row.job,
        "users": row.users(),
        "again": again(row, TokenizationForm),
        "topics": topics(row),
        **shares(row),
        "lengths": lengths(row),
        "frequent": frequent(row),
        "sifted": sifted(row),
    }
    return render(request, "tokenization/detail.html", context)


@require_http_methods(["GET", "POST"])
def tokenization_new(request: HttpRequest) -> HttpResponse:
    return creation(request, TokenizationForm, "tokenization/new.html", look=previewed)


@require_POST
def tokenization_delete(request: HttpRequest, pk: int) -> HttpResponse:
    return deletion(request, Tokenization, pk)


def previewed(form: ArtifactForm) -> dict[str, Any]:
    """What the form would make of the text; nothing is kept."""
    sample = str(form.data.get("sample", ""))[:PASTED]
    shown: dict[str, Any] = {"refused": "", "errors": form.errors}
    if form.is_valid():
        shown = preview(form.cleaned_data, sample)
        for row in shown.get("rows", ()):
            row["counted"] = sum(not kind for *_, kind in row["tokens"])
    return {"preview": shown, "sample": sample}


def shares(row: Tokenization) -> dict[str, float]:
    said = row.statistics
    places = said.get("tokens", 0) + said.get("padding_tokens", 0)
    return {
        "padding": said.get("padding_tokens", 0) / max(1, places),
        "coverage": said.get("vocabulary_used", 0) / max(1, said.get("vocabulary", 0)),
    }


def lengths(row: Tokenization) -> SafeString | str:
    """Documents by their lengths, in ranges that double."""
    counts = row.statistics.get("documents_by_tokens")
    if not counts:
        return ""
    ranges = {f"{2**n}–{2 ** (n + 1) - 1}": count for n, count in enumerate(counts) if count}
    return length_histogram(ranges, title="Documents by their tokens", unit="tokens")


def frequent(row: Tokenization) -> list[dict[str, Any]]:
    """The tokens that documents hold most often, with how many times and their share."""
    counts, total = row.statistics.get("most_frequent", []), row.statistics.get("document_tokens")
    pieces = read_vocabulary(row.language_model.folder) if counts else []
    return [{"id": token, "text": piece(pieces, token), "count": n, "share": n / total} for token, n in counts]


def sifted(row: Tokenization) -> list[dict[str, Any]]:
    """What each rule of the junk filter removed, and what a chat template refused."""
    said = row.statistics
    dropped, changed = said.get("dropped_documents", {}), said.get("changed_documents", {})
    return [
        {
            "rule": rule,
            "dropped": dropped.get(rule, 0),
            "changed": changed.get(rule, 0) - dropped.get(rule, 0),
            "characters": said["removed_characters"].get(rule, 0),
        }
        for rule in sorted({*dropped, *changed})
    ]
