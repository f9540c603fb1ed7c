"""What the web process costs: import, resident memory, start of a job's child, and the pages with many rows."""

import contextlib
import http.client
import json
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from urllib.parse import urlsplit

from bench.place import ROOT, place, quantile, server, session_cookie

JOBS, FEATURES, REQUESTS = 1_000, 100_000, 60


def process_start() -> dict[str, float]:
    code = (
        "import time, sys; t = time.perf_counter(); import django; django.setup(); "
        "import mistudio.asgi, mistudio.urls, psutil; memory = psutil.Process().memory_info().rss / 2**20; "
        "print(time.perf_counter() - t, memory, 'torch' in sys.modules)"
    )
    runs = []
    for _ in range(5):
        out = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        assert out[2] == "False", "the web process loaded torch"
        runs.append((float(out[0]), float(out[1])))
    return {
        "import_s": quantile([r[0] for r in runs], 0.5),
        "resident_mib": quantile([r[1] for r in runs], 0.5),
    }


def child_start() -> dict[str, float]:
    """From the supervisor's spawn to the first line of a kind, without and with the engine's imports."""
    figures = {}
    for name, imports in (
        ("child_start_s", "jobs.kinds.sleepy"),
        ("child_start_with_engine_s", "torch, transformers"),
    ):
        code = f"import django; django.setup(); import {imports}"
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        figures[name] = quantile(times, 0.5)
    return figures


def fill(folder: Path) -> dict[str, str]:
    """What a busy team has: many jobs, a long training, and a real scan of a real SAE that is very wide. Returns the
    pages to ask for."""
    from jobs.models import Job, Metric, State
    from mistudio.demo.pipeline import MODEL_FOLDER, SITE
    from mistudio.forms.dataset import DatasetForm
    from mistudio.forms.language_model import LanguageModelForm
    from mistudio.forms.scan import ScanForm
    from mistudio.forms.tokenization import TokenizationForm
    from mistudio.forms.training import TrainingForm
    from mistudio.management.commands.createadmin import administrator
    from tests.main_path import launch, write_texts

    admin = administrator("admin")
    Job.objects.bulk_create(
        Job(team=admin.team, kind="sleepy", queue="cpu", title=f"job {n}", state=list(State)[n % 6], percent=n % 100)
        for n in range(JOBS)
    )
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = write_texts(folder / "texts.jsonl", [path.read_text(errors="replace") for path in sources])
    model = launch(LanguageModelForm, admin, source=str(MODEL_FOLDER))
    data = launch(DatasetForm, admin, source=str(texts), text_column="text")
    tokens = launch(TokenizationForm, admin, dataset=data.pk, language_model=model.pk)
    run = launch(TrainingForm, admin, tokenization=tokens.pk, site=SITE, width=FEATURES, k=32, n_tokens=4096)
    launch(ScanForm, admin, sae=run.sae.pk, n_tokens=20_000)
    Metric.objects.bulk_create(
        Metric(job=run.job, step=step, values={"fvu": 1 / (1 + step), "loss": 1 / (1 + step), "l0": 32, "lr": 1e-4})
        for step in range(2, 2001)
    )
    features = f"/saes/{run.sae.pk}/features/"
    densest = run.sae.features.order_by("-n_fired").first().index
    return {
        "home": "/",
        "jobs": "/jobs/",
        "jobs, filtered": "/jobs/?state=failed&q=9",
        "trainings": "/trainings/",
        "training": f"/trainings/{run.pk}/",
        "SAE": f"/saes/{run.sae.pk}/",
        "features": features,
        "features, sorted": f"{features}?sort=-density",
        "features, searched": f"{features}?q=self",
        "features, page 1,500": f"{features}?page=1500",
        "feature": f"{features}{densest}/",
        "feature, within a filter": f"{features}{densest}/?state=alive&sort=-density",
    }


def pages() -> dict[str, dict[str, float]]:
    with place() as folder:
        with contextlib.redirect_stdout(sys.stderr):  # jobs log to it
            addresses = fill(folder)
        cookie = session_cookie()
        with server() as url:
            return {name: timed(url, path, cookie) for name, path in addresses.items()}


def timed(url: str, path: str, cookie: str) -> dict[str, float]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    milliseconds, size = [], 0
    for n in range(REQUESTS + 3):
        start = time.perf_counter()
        connection.request("GET", path, headers={"Cookie": cookie})
        answer = connection.getresponse()
        size = len(answer.read())
        assert answer.status == 200, f"{path}: {answer.status}"
        if n >= 3:
            milliseconds.append(1000 * (time.perf_counter() - start))
    return {"p50_ms": quantile(milliseconds, 0.5), "p95_ms": quantile(milliseconds, 0.95), "bytes": size}


if __name__ == "__main__":
    print(json.dumps({**process_start(), **child_start(), "pages": pages()}, indent=2))
