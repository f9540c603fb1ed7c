"""What the doctor finds of the runner, one thing wrong at a time."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.checks import ERROR, INFO, WARNING
from django.db import DatabaseError
from django.utils import timezone

from jobs import doctor, processes
from jobs.folders import YOUNG, strays
from jobs.models import Job, Worker
from jobs.queue import pause_queue
from tests.conftest import free_port


def said(look):
    """[(level, words with the hint)]"""
    return [(found.level, f"{found.msg} {found.hint or ''}".strip()) for found in doctor.findings(look)]


def worker(queue, **fields):
    return Worker.objects.create(host="here/1/x", pid=Worker.objects.count() + 1, queue=queue, slots=2, **fields)


def test_a_look_that_fails_is_a_finding_without_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")

    def broken():
        raise RuntimeError("no luck with hf_abcdefghijklmnop")
        yield

    def refused():
        raise DatabaseError("no such table")
        yield

    assert said(broken) == [
        (ERROR, "Cannot be looked at: RuntimeError: no luck with ***. This is a fault of miStudio: please report it.")
    ]
    assert said(refused) == [(WARNING, "Not looked at, because the database refuses. Mend the database first.")]


# ---- workers and jobs


@pytest.mark.django_db
def test_queues_with_workers_are_well_and_say_how_many_slots_are_in_use(row):
    worker("gpu"), worker("cpu"), worker("cpu")
    row("running", queue="cpu")
    assert said(doctor.workers) == [
        (INFO, "Queue gpu: 1 worker, 0 of 2 slots in use."),
        (INFO, "Queue cpu: 2 workers, 1 of 4 slots in use."),
    ]


@pytest.mark.django_db
def test_a_queue_without_a_worker_is_a_problem_when_jobs_wait_in_it(row):
    job = row("queued", queue="gpu")
    (first, gpu), (second, cpu) = said(doctor.workers)
    assert first == ERROR and gpu.startswith(f"1 job of queue gpu ({job.pk}) wait") and "worker --queue gpu" in gpu
    assert second == WARNING and "Queue cpu has no worker" in cpu


@pytest.mark.django_db
def test_a_job_that_nobody_takes_though_there_is_a_slot_is_a_problem(row):
    worker("cpu"), worker("gpu")
    row("queued", queue="cpu", queued_at=timezone.now())
    assert {level for level, _ in said(doctor.workers)} == {INFO}, "it came just now"
    job = row("queued", queue="cpu", queued_at=timezone.now() - timedelta(hours=1))
    (problem,) = [words for level, words in said(doctor.workers) if level == ERROR]
    assert problem.startswith(f"Job {job.pk} waits since") and problem.endswith("Restart its worker: 1 on here.")
    row("running", queue="cpu"), row("running", queue="cpu")
    assert {level for level, _ in said(doctor.workers)} == {INFO}, "no slot is free"


@pytest.mark.django_db
def test_a_paused_queue_deserves_a_look_and_its_free_slots_are_no_problem(row):
    worker("cpu"), worker("gpu")
    row("queued", queued_at=timezone.now() - timedelta(hours=1))
    pause_queue("cpu", reason="a new driver")
    (warning,) = [words for level, words in said(doctor.workers) if level != INFO]
    assert ": a new driver; 1 job waiting." in warning and warning.endswith("mistudio queue resume cpu")


@pytest.mark.django_db
def test_a_worker_that_fell_silent_is_named():
    worker("gpu"), worker("cpu")
    worker("cpu", heartbeat_at=timezone.now() - timedelta(seconds=45))
    (warning,) = [words for level, words in said(doctor.workers) if level == WARNING]
    assert warning.startswith("The cpu worker 3 on here is silent for 4")


@pytest.mark.django_db
def test_lost_and_stalled_jobs_are_told_apart(row):
    me = {"host": processes.this_host(), "supervisor_pid": os.getpid()}
    me |= {"supervisor_start": processes.start_of(os.getpid()), "heartbeat_at": timezone.now()}
    row("running", **me, started_at=timezone.now())
    assert said(doctor.jobs) == [(INFO, "1 job running, none of them lost or stalled.")]
    stalled = row("running", **me, started_at=timezone.now() - timedelta(hours=1))
    lost = row("running", **{**me, "supervisor_pid": 2**22 - 1, "heartbeat_at": timezone.now() - timedelta(hours=1)})
    (first, problem), (second, warning) = said(doctor.jobs)
    assert first == ERROR and f"({lost.pk}) lost the worker" in problem and problem.endswith("mistudio reap_jobs")
    assert second == WARNING and warning.endswith(f"mistudio jobs logs {stalled.pk}")


@pytest.mark.django_db
def test_of_many_jobs_the_first_are_named(row):
    jobs = [row("queued") for _ in range(11)]
    named = ", ".join(str(job.pk) for job in jobs[:8])
    assert doctor.listed(jobs) == f"{named} and 3 more"


@pytest.mark.django_db
def test_a_heartbeat_from_the_future_tells_of_a_fast_clock():
    worker("cpu")
    assert said(doctor.clocks) == [(INFO, "No heartbeat comes from the future.")]
    worker("gpu", heartbeat_at=timezone.now() + timedelta(seconds=90))
    ((level, words),) = said(doctor.clocks)
    assert level == WARNING and "worker 2 on here is" in words and "NTP" in words


@pytest.mark.django_db
def test_folders_of_jobs_without_a_row_are_told_with_their_size_and_left_alone(row, settings):
    job, room = row("succeeded"), settings.MISTUDIO_DATA / "jobs"
    long_ago = time.time() - YOUNG - 10
    for name in (str(job.pk), "900", "901", "notes"):
        (room / name).mkdir(parents=True)
        (room / name / "log.txt").write_bytes(b"x" * 700)
        if name != "901":
            os.utime(room / name, (long_ago, long_ago))
    ((level, words),) = said(doctor.job_folders)
    assert level == WARNING and words.startswith("1 folder of jobs (700 bytes) belong to no row.")
    assert words.endswith(str(room / "900")) and (room / "900" / "log.txt").exists()
    assert [path.name for path in strays(room, {job.pk, 900}).folders] == [], "901 is young, notes is no number"
    Job.objects.create(pk=900, team=job.team, kind="sleepy", queue="cpu")
    assert said(doctor.job_folders) == [(INFO, "2 jobs; no folder is left over.")]


def test_a_folder_that_is_deleted_while_it_is_looked_at_is_none(tmp_path, monkeypatch):
    (tmp_path / "900").mkdir()
    os.utime(tmp_path / "900", (0, 0))
    assert strays(tmp_path, set())
    is_dir = Path.is_dir

    def then_deleted(path):
        there = is_dir(path)
        if path.name == "900":
            path.rmdir()
        return there

    monkeypatch.setattr(Path, "is_dir", then_deleted)
    assert not strays(tmp_path, set())


# ---- Redis, PyTorch


def test_redis_is_asked_only_when_it_is_used_and_its_password_is_not_told(settings, monkeypatch):
    assert said(doctor.redis) == [(INFO, "Not used: one machine serves all pages.")]
    settings.REDIS_URL = f"redis://studio:hunter2@127.0.0.1:{free_port()}/0"
    monkeypatch.setenv("REDIS_URL", settings.REDIS_URL)
    ((level, words),) = said(doctor.redis)
    assert level == WARNING and "does not answer" in words and "hunter2" not in words
    settings.REDIS_URL = "nonsense"
    assert said(doctor.redis)[0][0] == WARNING


@pytest.mark.redis
def test_a_redis_that_answers_is_well(settings, redis_url):
    settings.REDIS_URL = redis_url
    assert said(doctor.redis) == [(INFO, "Answers.")]


@pytest.mark.slow
def test_pytorch_is_imported_in_a_process_of_its_own():
    import torch

    ((level, words),) = said(doctor.torch)
    assert level == INFO and words.startswith(f"PyTorch {torch.__version__}")


def test_a_pytorch_that_cannot_be_imported_is_a_problem_with_its_last_words(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: no such file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ((level, words),) = said(doctor.torch)
    assert level == ERROR and "ImportError: libcudart.so.13: no such file" in words and "pip install" in words


def test_a_pytorch_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "IMPORT_SECONDS", 1.0)
    start = time.monotonic()
    ((level, words),) = said(doctor.torch)
    assert level == ERROR and "within 1 s" in words and time.monotonic() - start < 30


CPU, CUDA = {"version": "2.13.0+cpu", "cuda": None}, {"version": "2.13.0", "cuda": "13.0"}
GOOD, BAD = {"name": "H200", "error": ""}, {"name": "B300", "error": "no kernel image is available"}


@pytest.mark.parametrize(
    ("facts", "seen", "level", "words"),
    [
        ({**CPU, "gpus": []}, [], INFO, "PyTorch 2.13.0+cpu; no GPU here"),
        ({**CPU, "gpus": []}, ["0"], ERROR, "There are 1 GPUs, but PyTorch 2.13.0+cpu, built without CUDA, finds none"),
        ({**CUDA, "gpus": []}, ["0", "1"], ERROR, "There are 2 GPUs, but PyTorch 2.13.0, built for CUDA 13.0, finds"),
        ({**CUDA, "gpus": [GOOD]}, ["0"], INFO, "PyTorch 2.13.0 computes on H200."),
        ({**CUDA, "gpus": [GOOD, BAD]}, ["0", "1"], ERROR, "cannot compute on B300 (no kernel image is available)"),
    ],
)
def test_what_pytorch_says_is_judged_by_what_the_driver_has(facts, seen, level, words):
    ((found, text),) = said(lambda: doctor.judge_torch(facts, seen))
    assert found == level and words in text


def test_more_slots_than_gpus_are_worth_a_word(settings):
    settings.GPU_SLOTS = 4
    found = said(lambda: doctor.judge_torch({**CUDA, "gpus": [GOOD, GOOD]}, ["0", "1"]))
    assert found[1] == (
        WARNING,
        "MISTUDIO_GPU_SLOTS is 4, but there are 2 GPUs: jobs share the first. Set MISTUDIO_GPU_SLOTS to 2.",
    )
