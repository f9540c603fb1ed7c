"""Programs of repositories are never run, and nothing that reaches the site can change that."""

import ast
import json
from pathlib import Path

import pytest
from django.urls import reverse

from jobs.child import perform
from jobs.context import Context
from jobs.errors import InvalidInput
from jobs.kinds import KINDS, load_kind, make_params
from jobs.models import Job
from jobs.queue import retry, submit
from mistudio.forms.language_model import LanguageModelForm
from mistudio.models import LanguageModel
from tests.conftest import ROOT
from tests.ml.tiny import save_model, tiny_model

SOURCES = [path for room in ("jobs", "mistudio", "monitoring") for path in (ROOT / room).rglob("*.py")]
SWITCH = "trust_remote_code"
LOADERS = {"from_pretrained", "from_config"}


def calls():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path, node


def test_the_switch_is_off_wherever_it_is_named_and_never_a_variable():
    named = [
        (path.name, ast.unparse(keyword.value))
        for path, call in calls()
        for keyword in call.keywords
        if keyword.arg == SWITCH
    ]
    assert named and {value for _, value in named} == {"False"}
    mentions = sum(path.read_text().count(f"{SWITCH}=") for path in SOURCES)
    assert mentions == len(named)


def test_every_loader_of_an_auto_class_is_called_with_the_switch_off():
    loaders = [
        call
        for _, call in calls()
        if isinstance(call.func, ast.Attribute) and call.func.attr in LOADERS and "uto" in ast.unparse(call.func.value)
    ]
    assert len(loaders) >= 4
    assert all(SWITCH in {keyword.arg for keyword in call.keywords} for call in loaders)


def test_no_kind_of_job_has_a_parameter_for_it():
    for name in KINDS:
        with pytest.raises(InvalidInput, match=f"Unknown parameter {SWITCH}"):
            make_params(load_kind(name), {SWITCH: True})


@pytest.mark.django_db
def test_no_field_query_or_header_of_a_request_reaches_a_job(alice, client_of):
    client = client_of(alice)
    for n, value in enumerate(("1", "true", "on")):
        client.post(
            f"{reverse('languagemodel_new')}?{SWITCH}={value}",
            {"source": f"owner/tiny{n}", "name": f"m{n}", SWITCH: value, "params": json.dumps({SWITCH: True})},
            headers={"Trust-Remote-Code": value, "X-Trust-Remote-Code": value},
        )
    assert LanguageModel.objects.count() == 3
    for job in Job.objects.all():
        assert set(job.params) == {"source", "folder", "revision", "known"}
        assert SWITCH not in json.dumps(job.params)


@pytest.mark.django_db
def test_no_retry_and_no_direct_submission_switches_it_on(alice, client_of):
    job = Job.objects.create(team=alice.team, owner=alice, kind="add_model", queue="cpu", state="failed")
    Job.objects.filter(pk=job.pk).update(params={"source": "owner/tiny", "folder": "/x", "revision": ""})
    job.refresh_from_db()
    said = {SWITCH: "1", "overrides": json.dumps({SWITCH: True})}
    assert client_of(alice).post(reverse("job_retry", args=[job.pk]), said).status_code == 302
    assert all(SWITCH not in json.dumps(one.params) for one in Job.objects.all())
    Job.objects.exclude(pk=job.pk).delete()
    with pytest.raises(InvalidInput, match=SWITCH):
        retry(job, {SWITCH: True})
    with pytest.raises(InvalidInput, match=SWITCH):
        submit("add_model", {"source": "a/b", "folder": "/x", SWITCH: True}, team=alice.team, owner=alice)


# ---- repositories with programs, through the form and the job


@pytest.fixture
def with_program(tmp_path):
    """A model whose program leaves a mark if it is run."""
    folder = save_model(tiny_model("llama"), tmp_path / "tiny")
    mark = tmp_path / "was-run"
    program = f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Mine: pass\n"
    for name in ("modeling_mine.py", "configuration_mine.py", "tokenization_mine.py"):
        (folder / name).write_text(program)
    return folder, mark


def change(path: Path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def added(alice, folder):
    form = LanguageModelForm({"source": str(folder)}, team=alice.team, owner=alice)
    model = form.launch()
    assert model is not None, form.errors
    return model, perform(model.job, Context(model.job.pk, 1, load_kind("add_model").STAGES))


AUTO_MAP = {"AutoConfig": "configuration_mine.Mine", "AutoModelForCausalLM": "modeling_mine.Mine"}


@pytest.mark.django_db
def test_a_family_that_exists_only_as_a_program_is_refused_by_what_is_missing(alice, with_program):
    folder, mark = with_program
    change(folder / "config.json", model_type="mine", auto_map=AUTO_MAP)
    model, outcome = added(alice, folder)
    assert outcome.error["code"] == "VALIDATION" and not mark.exists()
    assert "a program of its own (configuration_mine.py), which is never run" in outcome.error["message"]
    assert "has no model type “mine”" in outcome.error["message"] and "trust" not in str(outcome.error)
    assert not list(model.folder.glob("*.py"))


@pytest.mark.django_db
def test_a_tokenizer_that_is_a_program_is_refused_as_one(alice, with_program):
    folder, mark = with_program
    auto_map = {"AutoTokenizer": ["tokenization_mine.Mine", None]}
    change(folder / "tokenizer_config.json", tokenizer_class="Mine", auto_map=auto_map)
    _, outcome = added(alice, folder)
    assert outcome.error["code"] == "VALIDATION" and not mark.exists()
    assert "the tokenizer is a program of its own (tokenization_mine.py)" in outcome.error["message"]


@pytest.mark.django_db
def test_a_family_that_transformers_has_is_read_without_the_program_beside_it(alice, with_program):
    folder, mark = with_program
    change(folder / "config.json", auto_map=AUTO_MAP)
    model, outcome = added(alice, folder)
    assert outcome.how == "succeeded", outcome.error
    assert not mark.exists() and not list(model.folder.glob("*.py"))
