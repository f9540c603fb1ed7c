"""Files in parts: begin or find again (POST), ask (GET), send the next part (PUT), give up (DELETE)."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_http_methods, require_POST

from mistudio.models import Upload
from mistudio.models.upload import CHUNK, HEAD, Refused

LARGEST = 2**62  # a number that a database takes


def mine(request: HttpRequest) -> QuerySet[Upload]:
    user: Any = request.user
    return Upload.objects.of_team(user.team).filter(owner=user)


def said(upload: Upload, status: int = 200, **more: Any) -> JsonResponse:
    known = {"id": upload.pk, "received": upload.received, "size": upload.size, "sha256": upload.sha256}
    return JsonResponse({**known, **more}, status=status)


def refusing(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """What is refused is answered with its reason, for the page to show."""

    @wraps(view)
    def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return view(request, *args, **kwargs)
        except Refused as refused:
            return JsonResponse({"error": str(refused)}, status=refused.status)

    return answer


@require_POST
@refusing
def uploads(request: HttpRequest) -> HttpResponse:
    user: Any = request.user
    if user.team is None:
        raise Refused("You are in no team.", 403)
    head, name = request.FILES.get("head"), request.POST.get("name", "")
    size, modified = whole_number(request.POST.get("size")), whole_number(request.POST.get("modified"))
    if head is None or not name or size is None or modified is None or head.size != min(size, HEAD):
        raise Refused(f"An upload begins with name, size, modified and head, the first {HEAD:,} bytes.", 400)
    return said(Upload.begin(user.team, user, name, size, head.read(), modified))


@require_http_methods(["GET", "PUT", "DELETE"])
@refusing
def upload(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(mine(request), pk=pk)
    if request.method == "DELETE":
        row.delete_with_file()
        return HttpResponse(status=204)
    if request.method == "GET":
        return said(row)
    offset, length = whole_number(request.headers.get("Upload-Offset")), request.META.get("CONTENT_LENGTH")
    if offset is None:
        raise Refused("A part says where it begins: Upload-Offset.", 400)
    if not 0 < (whole_number(length) or 0) <= CHUNK:
        raise Refused(f"A part has 1 to {CHUNK:,} bytes; this one has {length or 'none'}.", 413)
    try:
        row.append(offset, request.body, request.headers.get("Upload-Sha256", ""))
    except Refused as refused:
        return said(row, refused.status, error=str(refused))
    return said(row)


@require_POST
def upload_delete(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(mine(request), pk=pk)
    row.delete_with_file()
    messages.success(request, f"Deleted the upload “{row.name}”.")
    return redirect("dataset_new")


def whole_number(text: str | None) -> int | None:
    return (
        int(text) if text and text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < LARGEST else None
    )
