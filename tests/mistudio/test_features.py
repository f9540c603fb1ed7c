import pytest
from django.urls import reverse

from mistudio.forms.feature import FeatureFilter
from tests import rows

pytestmark = pytest.mark.django_db


@pytest.fixture
def sae(alice):
    row = rows.sae(alice.team, features=60)
    rows.scan(alice.team, sae=row)
    return row


def found(sae, **query):
    return [feature.index for feature in FeatureFilter(query).rows(sae)]


def test_features_are_found_by_number_token_and_label(sae):
    sae.features.filter(index=12).update(label="Months of the year")
    assert found(sae, q="12") == [12]
    assert found(sae, q="#12") == [12]
    assert found(sae, q="months") == [12]
    assert found(sae, q="token33") == [33]
    assert found(sae, q="nothing like it") == []


def test_dead_dense_and_labelled_ones_can_be_listed(sae):
    assert found(sae, state="dead") == [0, 10, 20, 30, 40, 50]
    assert found(sae, state="dense") == [7, 14, 21, 28, 35, 42, 49, 56]
    assert len(found(sae, state="alive")) == 54
    assert found(sae, state="labelled") == []


def test_ranges_narrow_and_a_wrong_range_filters_nothing(sae):
    assert found(sae, max_min="29") == [58, 59]
    assert found(sae, density_min="0.05", density_max="0.055") == [51, 52, 53, 54, 55]
    assert len(found(sae, max_min="much")) == 60


def test_sorting_is_total_so_pages_never_repeat_a_feature(sae):
    by_density = found(sae, sort="-density")
    assert by_density[:3] == [7, 14, 21]
    assert sorted(by_density) == list(range(60))


@pytest.mark.parametrize("query", [{}, {"sort": "-density"}, {"sort": "-max", "state": "alive"}, {"sort": "label"}])
def test_next_walks_through_the_filter_in_order_and_previous_back(sae, query):
    chosen = FeatureFilter(query)
    order = found(sae, **query)
    walked, here = [], sae.features.get(index=order[0])
    while here is not None:
        walked.append(here.index)
        before, here_next = chosen.beside(here, chosen.rows(sae))
        assert (before.index if before else None) == (walked[-2] if len(walked) > 1 else None)
        here = here_next
    assert walked == order


def test_the_list_counts_dead_and_dense(sae, alice, client_of):
    counts = client_of(alice).get(reverse("features", args=[sae.pk])).context["counts"]
    assert counts == {"all": 60, "alive": 54, "dead": 6, "dense": 8, "labelled": 0}


def test_a_label_is_kept_with_its_author_and_leads_back_into_the_filter(sae, alice, client_of):
    url = reverse("feature_label", args=[sae.pk, 5])
    answer = client_of(alice).post(f"{url}?sort=-max", {"label": "<b>bold</b>", "notes": "why"})
    assert answer.url == f"{reverse('feature', args=[sae.pk, 5])}?sort=-max"
    row = sae.features.get(index=5)
    assert (row.label, row.notes, row.labelled_by) == ("<b>bold</b>", "why", alice)
    page = client_of(alice).get(answer.url).content.decode()
    assert "<b>bold</b>" not in page and "&lt;b&gt;bold&lt;/b&gt;" in page


def test_a_label_that_is_too_long_is_kept_in_the_form_and_refused(sae, alice, client_of):
    answer = client_of(alice).post(reverse("feature_label", args=[sae.pk, 5]), {"label": "x" * 201})
    assert answer.status_code == 422 and "x" * 201 in answer.content.decode()
    assert sae.features.get(index=5).label == ""


def test_a_feature_without_its_evidence_on_disk_still_has_a_page(sae, alice, client_of):
    answer = client_of(alice).get(reverse("feature", args=[sae.pk, 5]))
    assert answer.status_code == 200 and "Scan again" in answer.content.decode()


def test_a_feature_that_does_not_exist_is_not_found(sae, alice, client_of):
    assert client_of(alice).get(reverse("feature", args=[sae.pk, 60])).status_code == 404
