from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from mistudio.evidence import FeatureEvidence
from mistudio.forms.feature import FeatureFilter, LabelForm
from mistudio.models import Feature, Sae
from mistudio.models.feature import DENSE
from mistudio.views.artifact import PAGE, found


@require_GET
def features(request: HttpRequest, sae_pk: int) -> HttpResponse:
    sae = found(request, Sae, sae_pk, "language_model", "training", "scan__tokenization__language_model")
    chosen = FeatureFilter(request.GET)
    rows = chosen.rows(sae)
    page = Paginator(rows, PAGE).get_page(request.GET.get("page"))
    context = {"sae": sae, "scan": sae.scan, "filter": chosen, "page_obj": page, "counts": counts(sae)}
    return render(request, "feature/list.html", context)


def counts(sae: Sae) -> dict[str, int]:
    return sae.features.aggregate(
        all=Count("pk"),
        alive=Count("pk", filter=Q(n_fired__gt=0)),
        dead=Count("pk", filter=Q(n_fired=0)),
        dense=Count("pk", filter=Q(density__gt=DENSE)),
        labelled=Count("pk", filter=~Q(label="")),
    )


@require_GET
def feature(request: HttpRequest, sae_pk: int, index: int) -> HttpResponse:
    return page(request, *found_feature(request, sae_pk, index))


@require_POST
def feature_label(request: HttpRequest, sae_pk: int, index: int) -> HttpResponse:
    sae, row = found_feature(request, sae_pk, index)
    form = LabelForm(request.POST, instance=row)
    if not form.is_valid():
        return page(request, sae, Feature.objects.get(pk=row.pk), form, status=422)
    row.labelled_by, row.labelled_at = request.user, timezone.now()  # type: ignore[assignment]
    form.save()
    messages.success(request, f"Feature {index:,} saved.")
    query = request.GET.urlencode()
    return redirect(f"{row.get_absolute_url()}{'?' if query else ''}{query}")


def found_feature(request: HttpRequest, sae_pk: int, index: int) -> tuple[Sae, Feature]:
    sae = found(request, Sae, sae_pk, "language_model", "training", "scan__tokenization__language_model")
    return sae, get_object_or_404(sae.features.select_related("labelled_by"), index=index)


def page(
    request: HttpRequest, sae: Sae, row: Feature, form: LabelForm | None = None, status: int = 200
) -> HttpResponse:
    scan = sae.scan
    if scan is None:
        messages.info(request, f"No scan measures the features of “{sae}” now. Labels are kept.")
        return redirect("features", sae.pk)
    chosen = FeatureFilter(request.GET)
    previous, following = chosen.beside(row, chosen.rows(sae))
    context: dict[str, Any] = {
        "sae": sae,
        "scan": scan,
        "command": scan.command,
        "object": row,
        "evidence": FeatureEvidence(scan, row, whole="whole" in request.GET),
        "form": form or LabelForm(instance=row),
        "filter": chosen,
        "previous": previous,
        "next": following,
    }
    return render(request, "feature/detail.html", context, status=status)
