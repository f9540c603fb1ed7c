import django.db.models.deletion
from django.db import migrations, models


def take_over(apps, schema_editor):
    """The one cache that a training read is its only share now."""
    training, share = apps.get_model("mistudio", "Training"), apps.get_model("mistudio", "CacheShare")
    read = training.objects.exclude(activation_cache=None).values_list("pk", "activation_cache")
    share.objects.bulk_create(share(training_id=pk, cache_id=cache) for pk, cache in read)


def give_back(apps, schema_editor):
    training, share = apps.get_model("mistudio", "Training"), apps.get_model("mistudio", "CacheShare")
    for pk, cache in share.objects.order_by("-pk").values_list("training", "cache"):
        training.objects.filter(pk=pk).update(activation_cache=cache)


class Migration(migrations.Migration):
    dependencies = [
        ("mistudio", "0011_cache_precision"),
    ]

    operations = [
        migrations.AlterField(
            model_name="dataset",
            name="source",
            field=models.CharField(max_length=2000),
        ),
        migrations.CreateModel(
            name="CacheShare",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("weight", models.FloatField(null=True)),
                (
                    "cache",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="shares",
                        to="mistudio.activationcache",
                    ),
                ),
                (
                    "training",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="shares", to="mistudio.training"
                    ),
                ),
            ],
            options={"ordering": ["pk"]},
        ),
        migrations.AddConstraint(
            model_name="cacheshare",
            constraint=models.UniqueConstraint(fields=("training", "cache"), name="cache_once_per_training"),
        ),
        migrations.RunPython(take_over, give_back),
        migrations.RemoveField(model_name="training", name="activation_cache"),
        migrations.AddField(
            model_name="training",
            name="caches",
            field=models.ManyToManyField(
                related_name="trainings", through="mistudio.CacheShare", to="mistudio.activationcache"
            ),
        ),
    ]
