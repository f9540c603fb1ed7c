"""Migrations that move data: what an older miStudio wrote says the same after them."""

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

pytestmark = pytest.mark.django_db(transaction=True)
BEFORE, SHARES, MANY = "0011_cache_precision", "0012_cache_shares", "0013_many_saes"


@pytest.fixture
def migrated():
    """Brings the database to a migration, and gives the models as they are there. The newest come back at the end."""

    def migrate(*targets):
        return (
            MigrationExecutor(connection).migrate(list(targets)).apps
        )  # a new one each time: it reads what is applied

    newest = MigrationExecutor(connection).loader.graph.leaf_nodes()
    yield lambda name: migrate(("mistudio", name))
    migrate(*newest)


def rows_of(apps, noun):
    return apps.get_model("mistudio", noun).objects


def old_training(apps, name, **fields):
    """A training as it was when it had one cache, one width and one k."""
    team, _ = rows_of(apps, "Team").get_or_create(name="before")
    sizes = {"n_layers": 2, "d_model": 16, "vocab_size": 64, "context_length": 128, "n_parameters": 10_000}
    model, _ = rows_of(apps, "LanguageModel").get_or_create(team=team, name="model", defaults=sizes)
    dataset, _ = rows_of(apps, "Dataset").get_or_create(team=team, name="texts")
    parts = {"team": team, "language_model": model}
    tokens, _ = rows_of(apps, "Tokenization").get_or_create(
        **parts, dataset=dataset, name="tokens", defaults={"context_length": 32}
    )
    if cache := fields.pop("cache", ""):
        stored = {"tokenization": tokens, "n_tokens": 100, "sites": ["blocks.1.hook_z"]}
        fields["activation_cache"] = rows_of(apps, "ActivationCache").create(**parts, name=cache, **stored)
    known = {"site": "blocks.1.hook_z", "n_tokens": 8192, "ready_at": timezone.now()}
    return rows_of(apps, "Training").create(**parts, tokenization=tokens, name=name, **{**known, **fields})


@pytest.mark.slow
def test_the_cache_that_a_training_read_is_its_only_share_and_comes_back(migrated):
    old = migrated(BEFORE)
    reads = old_training(old, "reads", cache="stored", width=32)
    computes = old_training(old, "computes", width=32)
    new = migrated(SHARES)
    [share] = rows_of(new, "CacheShare").all()
    assert (share.training_id, share.cache_id, share.weight) == (reads.pk, reads.activation_cache_id, None)
    back = migrated(BEFORE)
    kept = dict(rows_of(back, "Training").values_list("pk", "activation_cache"))
    assert kept == {reads.pk: reads.activation_cache_id, computes.pk: None}


@pytest.mark.slow
def test_what_was_one_number_is_text_and_k_is_an_option(migrated):
    old = migrated(SHARES)
    topk = old_training(old, "topk", width=4096, lr=3e-4, seed=7, k=32)
    relu = old_training(old, "relu", width=32, architecture="standard", l1_coefficient=5.0)
    shared = {"team_id": topk.team_id, "language_model_id": topk.language_model_id, "site": "blocks.1.hook_z"}
    for run, k in ((topk, 32), (relu, None)):
        known = {"name": f"{run.name}-sae", "training": run, "architecture": run.architecture, "k": k}
        rows_of(old, "Sae").create(**shared, **known, d_in=16, width=run.width, fvu=0.25)
    new = migrated(MANY)
    rows = rows_of(new, "Training").order_by("pk").values_list("width", "lr", "seed", "options", "selection")
    assert list(rows) == [
        ("4096", "0.0003", "7", {"k": "32"}, "auto"),
        ("32", "", "0", {"l1_coefficient": "5"}, "auto"),
    ]
    saes = rows_of(new, "Sae").order_by("pk").values_list("training", "number", "reads", "writes", "options", "fvu")
    assert list(saes) == [
        (topk.pk, 0, ["blocks.1.hook_z"], [], {"k": 32}, 0.25),
        (relu.pk, 0, ["blocks.1.hook_z"], [], {}, 0.25),
    ]
