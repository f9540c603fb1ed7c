"""The main path on what is bundled: register the model, build the dataset, tokenize, train, scan."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from jobs.queue import resume
from mistudio.demo.corpus import write_corpus
from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.dataset import DatasetForm
from mistudio.forms.language_model import LanguageModelForm
from mistudio.forms.scan import ScanForm
from mistudio.forms.tokenization import TokenizationForm
from mistudio.forms.training import TrainingForm
from mistudio.models import Artifact, Dataset, LanguageModel, Sae, Scan, Team, Tokenization, Training, User

MODEL_FOLDER = Path(__file__).parent / "model"
SITE = "blocks.2.hook_resid_pre"
TRAINING = {"site": SITE, "architecture": "topk", "width": 2048, "k": 32, "n_tokens": 1_500_000}
Row = TypeVar("Row", bound=Artifact)
Finish = Callable[[Artifact], None]  # returns when the artifact is ready, raises when its job failed


class Demo:
    """Each step reuses what an earlier call left, goes on with what it left unfinished, and tries again what failed."""

    def __init__(self, team: Team, owner: User, corpus: Path, finish: Finish) -> None:
        self.team, self.owner, self.corpus, self.finish = team, owner, corpus, finish

    def run(self) -> tuple[Sae, Scan]:
        model = self.step(LanguageModel, LanguageModelForm, "demo-model", source=str(MODEL_FOLDER))
        if not self.corpus.exists():
            self.corpus.parent.mkdir(parents=True, exist_ok=True)
            write_corpus(self.corpus)
        data = self.step(Dataset, DatasetForm, "python-docs", source=str(self.corpus), text_column="text")
        tokens = self.step(
            Tokenization, TokenizationForm, "python-docs-tokens", dataset=data.pk, language_model=model.pk
        )
        training = self.step(Training, TrainingForm, "demo-sae", tokenization=tokens.pk, **TRAINING)
        sae = Sae.objects.of_team(self.team).get(training=training)
        scan = self.step(Scan, ScanForm, "demo-scan", sae=sae.pk, tokenization=tokens.pk)
        return sae, scan

    def step(self, model: type[Row], form_class: type[ArtifactForm], name: str, **data: Any) -> Row:
        row: Any = model.objects.of_team(self.team).filter(name=name).first()
        if row is None:
            form = form_class({"name": name, **data}, team=self.team, owner=self.owner)
            row = form.launch()
            if row is None:
                raise ValueError(f"The demo's {model.NOUN} is refused: {form.errors.as_text()}")
        elif row.state == "paused":
            resume(row.job)
        elif row.state in ("failed", "cancelled", "not started"):
            row.start()
        if not row.ready:
            self.finish(row)
            row.refresh_from_db()
        return row
