from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.safestring import SafeString
from django.utils.translation import get_language_info
from django.views.decorators.http import require_GET

from jobs.ml.document_rows import DOCUMENTS, SECONDS, DocumentRows, Wanted
from jobs.ml.document_sample import sample
from mistudio.figures.lengths import length_histogram
from mistudio.forms.document import DocumentFilter
from mistudio.models import Dataset
from mistudio.views.artifact import found

PAGE = 25
PART = 50_000  # characters of a document on one page


@require_GET
def documents(request: HttpRequest, pk: int) -> HttpResponse:
    dataset, rows = opened(request, pk)
    chosen = DocumentFilter(request.GET)
    context: dict[str, Any] = {"dataset": dataset, "filter": chosen, "page_size": PAGE}
    if rows is None:
        return render(request, "document/list.html", context)
    start, wanted = min(chosen.first, len(rows)), chosen.wanted
    if wanted:
        result = rows.search(wanted, start, PAGE)
        context |= {"rows": result.rows, "end": result.end, "limits": {"seconds": SECONDS, "documents": DOCUMENTS}}
    else:
        page = rows.page(start, PAGE)
        context |= {"rows": page, "end": start + len(page), "previous": max(0, start - PAGE)}
    query = urlencode({name: text for name, text in request.GET.items() if name != "start" and text})
    context["query"] = f"?{query}" if query else ""
    facts = {"histogram": histogram(dataset, chosen), "sample": described(dataset)}
    return render(request, "document/list.html", {**context, **facts, "start": start, "total": len(rows)})


@require_GET
def document(request: HttpRequest, pk: int, number: int) -> HttpResponse:
    dataset, rows = opened(request, pk)
    if rows is None or number >= len(rows):
        raise Http404(f"Dataset {pk} has no document {number}")
    shown, chosen = rows.document(number), DocumentFilter(request.GET)
    said = shown.messages or [{"role": "", "content": shown.text}]
    length = sum(len(message["content"]) for message in said)
    parts = max(1, -(-length // PART))
    asked = request.GET.get("part", "")
    part = min(parts, max(1, int(asked))) if asked.isdecimal() and len(asked) < 10 else 1
    context = {
        "dataset": dataset,
        "document": shown,
        "filter": chosen,
        "said": cut(said, (part - 1) * PART, part * PART),
        "length": length,
        "part": part,
        "parts": parts,
        "first": min(length, (part - 1) * PART + 1),
        "last": min(length, part * PART),
        "bytes": len(shown.text.encode()),
        "previous": number - 1 if number else None,
        "next": number + 1 if number + 1 < len(rows) else None,
        "total": len(rows),
        "query": urlencode({name: text for name, text in request.GET.items() if name != "part"}),
    }
    return render(request, "document/detail.html", context)


@require_GET
def document_next(request: HttpRequest, pk: int, number: int) -> HttpResponse:
    """To the next document that matches, or to where the search for it stopped."""
    rows, wanted = searched(request, pk)
    result = rows.search(wanted, number + 1, 1)
    query = {name: text for name, text in request.GET.items() if name not in ("part", "start")}
    if result.rows:
        return redirect(f"{reverse('document', args=[pk, result.rows[0].number])}?{urlencode(query)}")
    return redirect(f"{reverse('documents', args=[pk])}?{urlencode({**query, 'start': result.end})}")


@require_GET
def document_previous(request: HttpRequest, pk: int, number: int) -> HttpResponse:
    """To the last document before this one that matches; back to this one, with how far was looked, where none was
    found in time."""
    rows, wanted = searched(request, pk)
    number = min(number, len(rows) - 1)
    match, looked = rows.last_before(wanted, number)
    if match is None:
        why = (
            "None before this one matches." if looked == 0 else f"None from document {looked:,} up to this one matches."
        )
        messages.info(request, why)
    query = {name: text for name, text in request.GET.items() if name not in ("part", "start")}
    return redirect(f"{reverse('document', args=[pk, number if match is None else match])}?{urlencode(query)}")


def cut(said: list[dict[str, str]], start: int, end: int) -> list[dict[str, str]]:
    """The part of what was said from character `start` up to `end`, with who said it."""
    shown, at = [], 0
    for message in said:
        text = message["content"]
        if at + len(text) > start and at < end or not text and start <= at < end:
            shown.append({"role": message["role"], "content": text[max(0, start - at) : end - at]})
        at += len(text)
    return shown


def opened(request: HttpRequest, pk: int) -> tuple[Dataset, DocumentRows | None]:
    """The dataset, and its documents where it is ready and its files are there."""
    dataset = found(request, Dataset, pk)
    try:
        return dataset, DocumentRows(dataset.folder) if dataset.ready else None
    except FileNotFoundError:
        return dataset, None


def searched(request: HttpRequest, pk: int) -> tuple[DocumentRows, Wanted]:
    """The documents and what is looked for among them. Raises Http404 without the one or the other."""
    rows, wanted = opened(request, pk)[1], DocumentFilter(request.GET).wanted
    if rows is None or not wanted:
        raise Http404(f"Dataset {pk} has no documents, or nothing is looked for in them")
    return rows, wanted


def histogram(dataset: Dataset, chosen: DocumentFilter) -> SafeString:
    """Of all documents, as they were counted when the dataset was made."""
    wanted = chosen.wanted

    def address(low: int, high: int) -> str:
        query = {"q": wanted.text, "shortest": low, "longest": high}
        return f"?{urlencode({name: value for name, value in query.items() if value != ''})}"

    limits = (wanted.shortest, wanted.longest)
    return length_histogram(
        dataset.statistics.get("documents_by_characters", {}),
        title=f"Lengths of {dataset}",
        address=address,
        chosen=limits if None not in limits else None,  # type: ignore[arg-type]
    )


def described(dataset: Dataset) -> dict[str, Any]:
    """The sample, with the names of its languages and their shares."""
    measured = sample(dataset.folder)
    total = measured["documents"]
    rows = [(language_name(code), n, n / total) for code, n in measured["languages"].items()]
    others = sum(n for _, n, _ in rows[8:])
    return {**measured, "rows": rows[:8], "others": others, "unsure_share": measured["unsure"] / total}


def language_name(code: str) -> str:
    try:
        return str(get_language_info(code)["name"])
    except KeyError:
        return code
