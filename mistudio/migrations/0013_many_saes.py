import django.db.models.deletion
from django.db import migrations, models

OPTIONS = ("k", "l1_coefficient")  # of a training, once


def take_over(apps, schema_editor):
    """What was one number each is text now; k and the L1 coefficient are options."""
    for row in apps.get_model("mistudio", "Training").objects.all():
        row.width, row.seed = str(row.old_width), str(row.old_seed)
        row.lr = "" if row.old_lr is None else f"{row.old_lr:g}"
        row.options = {name: f"{getattr(row, name):g}" for name in OPTIONS if getattr(row, name) is not None}
        row.save()
    for row in apps.get_model("mistudio", "Sae").objects.all():
        row.reads = [row.site]
        row.options = {} if row.k is None else {"k": row.k}
        row.save()


class Migration(migrations.Migration):
    dependencies = [
        ("mistudio", "0012_cache_shares"),
    ]

    operations = [
        *(migrations.RenameField("training", name, f"old_{name}") for name in ("width", "lr", "seed")),
        migrations.AlterField("training", "site", models.CharField(max_length=2000)),
        migrations.AlterField("training", "architecture", models.CharField(default="topk", max_length=200)),
        migrations.AddField("training", "width", models.CharField(default="", max_length=200), preserve_default=False),
        migrations.AddField(
            "training", "lr", models.CharField(blank=True, default="", max_length=200, verbose_name="learning rate"),
            preserve_default=False,
        ),
        migrations.AddField("training", "seed", models.CharField(default="0", max_length=200)),
        migrations.AddField(
            "training", "writes",
            models.CharField(blank=True, default="", max_length=120, verbose_name="site to write"),
            preserve_default=False,
        ),
        migrations.AddField("training", "options", models.JSONField(blank=True, default=dict)),
        migrations.AddField(
            "training",
            "selection",
            models.CharField(
                choices=[("auto", "the fastest here"), ("float32", "float32"), ("bfloat16", "bfloat16")],
                default="auto",
                max_length=20,
                verbose_name="choice of latents",
            ),
        ),
        migrations.AddField("sae", "number", models.PositiveIntegerField(default=0, editable=False)),
        migrations.AddField("sae", "reads", models.JSONField(default=list)),
        migrations.AddField("sae", "writes", models.JSONField(blank=True, default=list)),
        migrations.AddField("sae", "options", models.JSONField(blank=True, default=dict)),
        migrations.RunPython(take_over, migrations.RunPython.noop),
        *(migrations.RemoveField("training", name) for name in ("old_width", "old_lr", "old_seed", *OPTIONS)),
        *(migrations.RemoveField("sae", name) for name in ("site", "k")),
        migrations.AlterField(
            "sae",
            "training",
            models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="saes",
                to="mistudio.training",
            ),
        ),
        migrations.AddConstraint(
            "sae", models.UniqueConstraint(fields=("training", "number"), name="sae_number_once_per_training")
        ),
    ]
