import django.db.models.deletion
import uuid
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0002_initial'),
        ('mistudio', '0013_many_saes'),
    ]

    operations = [
        migrations.CreateModel(
            name='Evaluation',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('name', models.CharField(max_length=120)),
                ('submission', models.UUIDField(default=uuid.uuid4, editable=False, unique=True)),
                ('ready_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('size_bytes', models.BigIntegerField(blank=True, editable=False, null=True)),
                ('split', models.CharField(choices=[('held_out', 'Held out'), ('train', 'Trained on')], default='held_out', max_length=12)),
                ('n_tokens', models.BigIntegerField(help_text='Tokens to read.')),
                ('dtype', models.CharField(choices=[('auto', 'the fastest here'), ('float32', 'float32'), ('bfloat16', 'bfloat16'), ('float16', 'float16'), ('int8', 'int8 (bitsandbytes)'), ('int4', 'int4 (bitsandbytes)')], default='float32', max_length=20, verbose_name='precision')),
                ('text_column', models.CharField(blank=True, max_length=120)),
                ('label_column', models.CharField(blank=True, max_length=120)),
                ('second_label_column', models.CharField(blank=True, max_length=120)),
                ('absorption', models.BooleanField(default=False)),
                ('evaluated_tokens', models.BigIntegerField(editable=False, null=True)),
                ('result', models.JSONField(default=dict, editable=False)),
                ('job', models.ForeignKey(blank=True, editable=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to='jobs.job')),
                ('labelled', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='evaluations', to='mistudio.dataset')),
                ('owner', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('sae', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='evaluations', to='mistudio.sae')),
                ('team', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='mistudio.team')),
                ('tokenization', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='evaluations', to='mistudio.tokenization')),
            ],
            options={
                'ordering': ['-pk'],
                'abstract': False,
                'constraints': [models.UniqueConstraint(fields=('team', 'name'), name='evaluation_name_once_per_team')],
            },
        ),
    ]
