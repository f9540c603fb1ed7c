import gzip
import hashlib
import json
import os
import resource
import shutil
import threading
import uuid
from datetime import timedelta

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from jobs.models import Job, State
from jobs.reap import forget
from mistudio.forms.upload import UploadedDatasetForm
from mistudio.models import Dataset, Upload
from mistudio.models import upload as uploads
from mistudio.models.upload import CHUNK, HEAD, leaf, sweep
from tests import rows
from tests.conftest import manage
from tests.main_path import work

pytestmark = pytest.mark.django_db


def jsonl(n, size=0):
    text = "".join(json.dumps({"text": f"document {i} {'word ' * 8}"}) + "\n" for i in range(n)).encode()
    return text + b" " * max(0, size - len(text))


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def begin(client, data, name="texts.jsonl", modified=1, **said):
    body = {"name": name, "size": len(data), "modified": modified, **said}
    return client.post("/uploads/", {**body, "head": SimpleUploadedFile("head", data[:HEAD])})


def put(client, pk, data, offset, end=None, **headers):
    end = min(len(data), offset + CHUNK) if end is None else end
    said = {"Upload-Offset": str(offset), "Upload-Sha256": sha256(data[:end]), **headers}
    return client.put(f"/uploads/{pk}/", data[offset:end], content_type="application/octet-stream", headers=said)


def send(client, data, name="texts.jsonl"):
    answer = begin(client, data, name).json()
    while answer["received"] < len(data):
        answer = put(client, answer["id"], data, answer["received"]).json()
        assert "error" not in answer
    return Upload.objects.get(pk=answer["id"])


@pytest.fixture
def client(alice, client_of):
    return client_of(alice)


# ---- the protocol


def left(team):
    return uploads.quota_left(team, uploads.kept_bytes(team))


def test_a_file_sent_in_parts_is_whole_and_its_hash_is_known(client):
    data = jsonl(50, 2 * CHUNK + 5)
    row = send(client, data)
    assert row.whole and row.path.read_bytes() == data and row.sha256 == sha256(data)


def test_the_same_file_goes_on_where_it_stopped(client):
    data = jsonl(50, 2 * CHUNK)
    first = begin(client, data).json()
    put(client, first["id"], data, 0)
    again = begin(client, data).json()
    assert again == {"id": first["id"], "received": CHUNK, "size": len(data), "sha256": sha256(data[:CHUNK])}
    assert put(client, first["id"], data, CHUNK).json()["received"] == len(data)


@pytest.mark.parametrize("other", [{"name": "other.jsonl"}, {"modified": 2}])
def test_a_file_that_differs_in_anything_begins_anew(other, client):
    data = jsonl(50)
    first = begin(client, data).json()["id"]
    assert begin(client, data, **other).json()["id"] != first
    assert begin(client, data + b"\n").json()["id"] != first
    assert begin(client, jsonl(50).replace(b"document 0", b"document x")).json()["id"] != first


def test_a_part_for_another_place_is_refused_with_the_right_place_and_changes_nothing(client):
    data = jsonl(50, 2 * CHUNK)
    pk = begin(client, data).json()["id"]
    put(client, pk, data, 0)
    for offset in (0, 7, CHUNK + 1):  # sent again after a lost answer, or by another tab
        answer = put(client, pk, data, offset)
        assert (answer.status_code, answer.json()["received"]) == (409, CHUNK)
    assert Upload.objects.get().path.read_bytes() == data[:CHUNK]


def test_a_part_that_was_changed_on_its_way_is_refused_and_can_be_sent_again(client):
    data = jsonl(50, CHUNK + 9)
    pk = begin(client, data).json()["id"]
    put(client, pk, data, 0)
    answer = put(client, pk, data, CHUNK, **{"Upload-Sha256": sha256(b"other")})
    assert answer.status_code == 422 and "changed on its way" in answer.json()["error"]
    assert answer.json()["received"] == CHUNK
    assert put(client, pk, data, CHUNK).json()["sha256"] == sha256(data)


def test_another_server_process_goes_on_with_the_hash(client):
    data = jsonl(50, 2 * CHUNK)
    pk = begin(client, data).json()["id"]
    put(client, pk, data, 0)
    uploads.hashes.clear()
    assert put(client, pk, data, CHUNK).json()["sha256"] == sha256(data)


def test_what_a_killed_server_wrote_but_did_not_count_is_written_over(client):
    data = jsonl(50, 2 * CHUNK)
    pk = begin(client, data).json()["id"]
    put(client, pk, data, 0)
    with Upload.objects.get().path.open("ab") as file:
        file.write(b"half of a part")
    uploads.hashes.clear()
    assert client.get(f"/uploads/{pk}/").json()["received"] == CHUNK
    put(client, pk, data, CHUNK)
    assert Upload.objects.get().path.read_bytes() == data


KILLED_BEFORE_IT_COUNTS = """
import os
from pathlib import Path
from mistudio.models import Upload, upload
upload.os.fsync = lambda descriptor: os.kill(os.getpid(), 9)
row = Upload.objects.get()
row.append({offset}, Path({path!r}).read_bytes()[{offset}:])
"""


@pytest.mark.django_db(transaction=True)
def test_a_process_killed_in_the_middle_of_a_part_leaves_what_is_counted(alice, tmp_path):
    data = jsonl(50, CHUNK + 1000)
    (tmp_path / "data").write_bytes(data)
    row = Upload.begin(alice.team, alice, "texts.jsonl", len(data), data[:HEAD])
    row.append(0, data[:CHUNK])
    code = KILLED_BEFORE_IT_COUNTS.format(offset=CHUNK, path=str(tmp_path / "data"))
    assert manage("shell", "-v", "0", "-c", code).returncode == -9
    row.refresh_from_db()
    assert row.received == CHUNK and row.path.stat().st_size == len(data), "written, and not counted"
    row.append(CHUNK, data[CHUNK:], sha256(data))
    assert row.whole and row.path.read_bytes() == data


def test_two_tabs_that_send_the_same_file_leave_one_whole_file(client, alice):
    data = jsonl(5000)
    row = Upload.begin(alice.team, alice, "texts.jsonl", len(data), data[:HEAD])
    inside, order = threading.Event(), []

    def slow():
        with row.path.open("r+b") as file:
            uploads.fcntl.flock(file, uploads.fcntl.LOCK_EX)
            inside.set()
            threading.Event().wait(0.3)
            order.append("first")

    other = threading.Thread(target=slow)
    other.start()
    assert inside.wait(60)
    row.append(0, data)
    order.append("second")
    other.join()
    assert order == ["first", "second"] and row.path.read_bytes() == data


def test_what_goes_beyond_the_end_or_is_too_long_or_empty_is_refused(client):
    data = jsonl(50)
    pk = begin(client, data).json()["id"]
    beyond = put(client, pk, data + b"more", 0, len(data) + 4)
    assert beyond.status_code == 422 and "goes on to" in beyond.json()["error"]
    assert put(client, pk, b"x" * (CHUNK + 1), 0, CHUNK + 1).status_code == 413
    assert put(client, pk, b"", 0, 0).status_code == 413
    assert put(client, pk, data, 0, **{"Upload-Offset": "-1"}).status_code == 400
    assert Upload.objects.get().received == 0


@pytest.mark.parametrize("wrong", [{"size": "x"}, {"size": "-5"}, {"size": "9" * 30}, {"name": ""}, {"modified": "?"}])
def test_a_beginning_that_says_nothing_sensible_is_refused(wrong, client):
    assert begin(client, jsonl(5), **wrong).status_code == 400
    assert not Upload.objects.exists()


def test_an_upload_that_was_deleted_meanwhile_says_so(client, alice, django_capture_on_commit_callbacks):
    data = jsonl(50)
    row = Upload.begin(alice.team, alice, "texts.jsonl", len(data), data[:HEAD])
    with django_capture_on_commit_callbacks(execute=True):
        assert client.delete(f"/uploads/{row.pk}/").status_code == 204
    assert put(client, row.pk, data, 0).status_code == 404 and not row.folder.exists()
    with pytest.raises(uploads.Refused, match="no longer here"):
        row.append(0, data)


# ---- what is let in


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("picture.txt", b"\x89PNG\r\n\x1a\n" + bytes(90), "a picture"),
        ("paper.txt", b"%PDF-1.7\n" + b"x" * 90, "a PDF"),
        ("model.jsonl", b"GGUF" + bytes(90), "a language model"),
        ("run", b"\x7fELF" + bytes(90), "a program"),
        ("weights.bin", b"just words, many of them", "could be anything"),
        ("texts.zip.gz", b"\x1f\x8b" + b"\0" * 20, "packed with gzip, not text"),
        ("table.parquet.gz", b"\x1f\x8b" + b"\0" * 20, "packed with gzip, not text"),
        ("texts.tar", b"just words", "not what .tar files are"),
        ("rows.parquet", b"just words", "not what .parquet files are"),
        ("rows.parquet", b"PK\x03\x04" + bytes(90), "a zip archive"),
        ("texts.txt.gz", b"plain after all", "not what .gz files are"),
        ("texts.txt.gz", gzip.compress(b"%PDF-1.7 packed", mtime=0), "a PDF"),
        ("empty.txt", b"", "is empty"),
    ],
)
def test_what_is_no_text_is_refused_at_once_by_what_it_is(name, data, said, client):
    answer = begin(client, data, name)
    assert answer.status_code in (415, 422) and said in answer.json()["error"], answer.json()
    assert not Upload.objects.exists()


def test_a_first_part_that_is_not_what_the_head_promised_is_refused(client):
    data = jsonl(50)
    pk = begin(client, data).json()["id"]
    other = b"%PDF-1.7\n" + data[9:]
    assert put(client, pk, other, 0).status_code == 415
    assert Upload.objects.get().path.stat().st_size == 0


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd.txt", "passwd.txt"),
        ("C:\\Users\\eve\\my texts.csv", "my texts.csv"),
        (".hidden.txt", "hidden.txt"),
        ("a\x00b\u202egpj.txt", "a_b_gpj.txt"),
        ("/", "file"),
        ("ä" * 200 + ".jsonl", "ä" * 87 + ".jsonl"),
    ],
)
def test_a_name_is_never_a_path(name, kept):
    assert leaf(name) == kept and len(kept.encode()) <= 180


def test_a_name_with_html_is_shown_as_text(client, alice):
    data = jsonl(5)
    Upload.begin(alice.team, alice, "<img src=x onerror=alert(1)>.txt", len(data), data[:HEAD])
    page = client.get("/datasets/new/").content.decode()
    assert "&lt;img src=x" in page and "<img src=x" not in page


def test_files_beyond_the_limit_of_one_or_the_quota_of_a_team_are_refused(client, settings):
    settings.UPLOAD_LIMIT, settings.UPLOAD_QUOTA = 4000, 5000
    tall = begin(client, jsonl(9, 4001))
    assert tall.status_code == 413 and "at most 3.9 KiB can be uploaded" in tall.json()["error"]
    assert begin(client, jsonl(9, 3000)).status_code == 200
    second = begin(client, jsonl(9, 3000), "second.jsonl")
    assert second.status_code == 413 and "only 2.0 KiB are free" in second.json()["error"]


def test_the_quota_is_the_teams_and_not_of_another(client, charlie, client_of, settings):
    settings.UPLOAD_QUOTA = 4000
    assert begin(client, jsonl(9, 3000)).status_code == 200
    assert begin(client_of(charlie), jsonl(9, 3000)).status_code == 200


def test_files_that_a_dataset_keeps_for_their_labels_count_once_against_the_quota(client, alice, settings):
    settings.UPLOAD_QUOTA = 5000
    upload = send(client, jsonl(9, 3000), "kinds.jsonl")
    for name in ("one", "two"):
        form(client, uploads=[upload.pk], name=name)
    assert left(alice.team) == 2000  # links to what the upload counts
    upload.delete()
    assert left(alice.team) == 2000
    refused = begin(client, jsonl(9, 2500), "second.jsonl")
    assert refused.status_code == 413
    said = "only 2.0 KiB are free (2.9 KiB are kept by datasets for their labels, or by imports that failed)."
    assert f"{said} Delete an upload or one of those, or give a path as the source." in refused.json()["error"]
    for dataset in Dataset.objects.all():
        shutil.rmtree(dataset.upload_folder)
    assert begin(client, jsonl(9, 2500), "second.jsonl").status_code == 200


def test_the_archive_of_an_import_that_failed_counts_against_the_quota_of_its_team_alone(alice, charlie, settings):
    settings.UPLOAD_QUOTA = 5000
    row = rows.sae(alice.team, uploaded="sae.zip")
    row.upload_folder.mkdir(parents=True)
    (row.upload_folder / "sae.zip").write_bytes(b"x" * 1000)
    assert left(alice.team) == 4000 and left(charlie.team) == 5000


def test_a_file_that_does_not_fit_the_disk_is_refused_before_it_is_sent(client, settings):
    settings.UPLOAD_LIMIT = settings.UPLOAD_QUOTA = 2**61
    answer = begin(client, jsonl(2000), size=2**60)
    assert answer.status_code == 507 and "are free" in answer.json()["error"]


def test_a_disk_that_fills_up_costs_nothing_that_was_received(client):
    data = jsonl(50, 2 * CHUNK)
    pk = begin(client, data).json()["id"]
    put(client, pk, data, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK + CHUNK // 2, hard))  # the kernel refuses to write beyond
    try:
        answer = put(client, pk, data, CHUNK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert answer.status_code == 507 and "What was received is kept" in answer.json()["error"]
    assert Upload.objects.get().path.stat().st_size == CHUNK
    assert put(client, pk, data, CHUNK).json()["sha256"] == sha256(data)


def test_nobody_begins_files_without_end(client):
    for n in range(uploads.MOST_UNFINISHED):
        assert begin(client, jsonl(3), f"texts-{n}.jsonl").status_code == 200
    assert begin(client, jsonl(3), "one-more.jsonl").status_code == 429


def test_an_upload_belongs_to_one_person(client, bob, charlie, client_of):
    data = jsonl(50)
    pk = begin(client, data).json()["id"]
    for person in (bob, charlie):
        other = client_of(person)
        assert {other.get(f"/uploads/{pk}/").status_code, put(other, pk, data, 0).status_code} == {404}
        assert {other.delete(f"/uploads/{pk}/").status_code, other.post(f"/uploads/{pk}/delete/").status_code} == {404}
        assert begin(other, data).json()["id"] != pk


def test_every_request_needs_the_token(alice):
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(alice)
    row = Upload.begin(alice.team, alice, "texts.jsonl", 50, b"words")
    assert begin(strict, jsonl(5)).status_code == 403
    assert put(strict, row.pk, b"words", 0).status_code == 403
    assert strict.delete(f"/uploads/{row.pk}/").status_code == 403


# ---- how long it is kept


def age(row, **fields):
    Upload.objects.filter(pk=row.pk).update(**fields)


def test_what_nobody_goes_on_with_is_removed_with_its_file(alice, django_capture_on_commit_callbacks):
    idle, old, fresh = (Upload.begin(alice.team, alice, f"{n}.txt", 9, b"words") for n in ("idle", "old", "fresh"))
    now = timezone.now()
    age(idle, touched_at=now - uploads.IDLE)
    age(old, created_at=now - uploads.TOTAL)
    with django_capture_on_commit_callbacks(execute=True):
        forget()  # as workers do
    assert [*Upload.objects.all()] == [fresh]
    assert [row.folder.exists() for row in (idle, old, fresh)] == [False, False, True]


def test_a_file_too_old_is_not_gone_on_with(client):
    pk = begin(client, jsonl(5)).json()["id"]
    Upload.objects.update(touched_at=timezone.now() - uploads.IDLE)
    assert begin(client, jsonl(5)).json()["id"] != pk


def test_folders_without_a_row_are_removed_after_an_hour(db, settings):
    lost, new = (settings.MISTUDIO_DATA / "uploads" / name for name in ("77", "78"))
    for folder in (lost, new):
        folder.mkdir(parents=True)
    long_ago = (timezone.now() - timedelta(hours=2)).timestamp()
    os.utime(lost, (long_ago, long_ago))
    sweep()
    assert not lost.exists() and new.exists()


def test_the_command_says_what_it_removed(alice, capsys):
    age(Upload.begin(alice.team, alice, "old.txt", 9, b"words"), touched_at=timezone.now() - uploads.IDLE)
    call_command("clean_uploads", "--json")
    assert json.loads(capsys.readouterr().out) == {"removed": ["old.txt"]}


# ---- from files to a dataset


def form(client, **data):
    return client.post("/datasets/new/", {"submission": str(uuid.uuid4()), **data})


def test_uploaded_files_become_a_dataset_and_are_then_removed(client, alice, django_capture_on_commit_callbacks):
    one, two = send(client, jsonl(20), "first.part.jsonl"), send(client, jsonl(30), "second.jsonl")
    with django_capture_on_commit_callbacks(execute=True):
        answer = form(client, uploads=[one.pk, two.pk], text_column="text")
        made = work(Dataset.objects.get())
    assert answer.url == made.get_absolute_url()
    assert (made.name, made.n_documents, made.source) == ("first.part", 50, "uploaded: first.part.jsonl and 1 more")
    assert not Upload.objects.exists() and not one.folder.exists() and not made.upload_folder.exists()
    page = client.get(made.get_absolute_url()).content.decode()
    assert "uploaded: first.part.jsonl and 1 more" in page and str(made.upload_folder) not in page


@pytest.mark.parametrize(("limit", "stays"), [(2**30, True), (100, False)])
def test_files_with_columns_beside_the_text_stay_with_the_dataset_where_they_are_small(
    client, monkeypatch, limit, stays, django_capture_on_commit_callbacks
):
    monkeypatch.setattr(uploads, "KEPT", limit)
    lines = [json.dumps({"text": f"a text with the number {n}", "label": n % 2}) for n in range(40)]
    upload = send(client, "\n".join(lines).encode(), "kinds.jsonl")
    with django_capture_on_commit_callbacks(execute=True):
        form(client, uploads=[upload.pk], text_column="text")
        made = work(Dataset.objects.get())
    assert made.n_documents == 40 and not upload.folder.exists()
    assert (made.upload_folder / "kinds.jsonl").is_file() == stays


def test_a_clone_of_what_was_uploaded_says_which_files_to_choose_again(client, alice):
    row = rows.dataset(alice.team, source="uploaded: mine.jsonl", uploaded=["mine.jsonl"])
    address = client.get(row.get_absolute_url()).context["again"]
    page = client.get(address).content.decode()
    assert "It was <bdi>uploaded: mine.jsonl</bdi>" in page and "choose the files again" in page
    assert row.command() == "mistudio add_dataset ./mine.jsonl --name texts"


def test_what_failed_is_tried_again_with_the_files_that_are_here(client, alice):
    upload = send(client, jsonl(20))
    form(client, uploads=[upload.pk], text_column="no such column")
    failed = Dataset.objects.get()
    Dataset.objects.update(job=None)
    address = client.get(failed.get_absolute_url()).context["again"]
    again = client.get(address)
    assert f'value="{upload.pk}" checked' in again.content.decode()
    assert form(client, uploads=[upload.pk], name="again").status_code == 302
    assert work(Dataset.objects.get(name="again")).n_documents == 20


def test_a_dataset_keeps_its_files_when_its_uploads_are_swept_away(client, django_capture_on_commit_callbacks):
    upload = send(client, jsonl(20))
    form(client, uploads=[upload.pk])
    Upload.objects.update(touched_at=timezone.now() - uploads.IDLE)
    with django_capture_on_commit_callbacks(execute=True):
        sweep()
    assert not upload.path.exists()
    assert work(Dataset.objects.get()).n_documents == 20


def test_files_of_one_name_do_not_overwrite_each_other(client):
    one, two = send(client, jsonl(20)), send(client, jsonl(31))
    form(client, uploads=[one.pk, two.pk])
    made = Dataset.objects.get()
    assert made.uploaded == ["texts.jsonl", "texts-2.jsonl"]
    assert work(made).n_documents == 51


def test_unfinished_or_foreign_uploads_make_no_dataset(client, charlie, client_of):
    unfinished = begin(client, jsonl(9)).json()["id"]
    foreign = send(client_of(charlie), jsonl(9))
    for pk in (unfinished, foreign.pk, "x", 10**30):
        answer = form(client, uploads=[pk], text_column="kept")
        assert answer.status_code == 422 and 'value="kept"' in answer.content.decode()
    assert not Dataset.objects.exists()


def test_a_form_without_scripts_takes_small_files_along(client):
    answer = form(client, files=[SimpleUploadedFile("plain.txt", b"one\ntwo\nthree\n")])
    assert answer.status_code == 302
    assert work(Dataset.objects.get()).n_documents == 3


def test_a_form_with_a_mistake_keeps_its_files_and_all_that_was_typed(client, alice):
    rows.dataset(alice.team, "taken")
    answer = form(client, files=[SimpleUploadedFile("plain.txt", b"one\ntwo\n")], name="taken", text_column="body")
    page, upload = answer.content.decode(), Upload.objects.get()
    assert answer.status_code == 422 and 'value="body"' in page
    assert f'value="{upload.pk}" checked' in page
    assert form(client, uploads=[upload.pk], name="free").status_code == 302


def test_wrong_content_in_a_form_is_an_error_of_the_field(client):
    answer = form(client, files=[SimpleUploadedFile("a.txt", b"%PDF-1.7" + b"x" * 90)], text_column="body")
    assert answer.status_code == 422
    assert "a.txt is a PDF" in answer.context["form"].errors["files"][0] and 'value="body"' in answer.content.decode()


def test_a_form_that_is_too_large_loses_its_files_but_nothing_typed(client, monkeypatch):
    monkeypatch.setattr("mistudio.security.PLAIN_LIMIT", -(2**20) + 5000)
    answer = form(client, files=[SimpleUploadedFile("a.txt", b"words " * 2000)], text_column="body")
    assert answer.status_code == 422 and 'value="body"' in answer.content.decode()
    assert "with scripts turned on" in answer.context["form"].errors["files"][0].lower()
    assert not Upload.objects.exists()


def test_source_and_files_together_are_refused_and_neither_too(client):
    upload = send(client, jsonl(9))
    both = form(client, uploads=[upload.pk], source="owner/texts").context["form"].errors
    assert "Files are chosen, too" in both["source"][0]
    assert "required" in form(client).context["form"].errors["source"][0]


def test_a_file_that_went_meanwhile_is_an_error_of_the_form_and_makes_no_dataset(client):
    upload = send(client, jsonl(9))
    upload.path.unlink()
    answer = form(client, uploads=[upload.pk], text_column="body")
    assert answer.status_code == 422 and 'value="body"' in answer.content.decode()
    assert "Choose it again" in answer.context["form"].errors["uploads"][0] and not Dataset.objects.exists()


def test_the_same_page_still_takes_a_path(client, tmp_path):
    (tmp_path / "texts.jsonl").write_bytes(jsonl(7))
    assert form(client, source=str(tmp_path / "texts.jsonl")).status_code == 302
    made = work(Dataset.objects.get())
    assert (made.n_documents, made.uploaded, made.source) == (7, [], str(tmp_path / "texts.jsonl"))


def test_the_form_sent_twice_makes_one_dataset(client):
    upload, submission = send(client, jsonl(9)), str(uuid.uuid4())
    answers = [form(client, uploads=[upload.pk], submission=submission) for _ in range(2)]
    assert answers[0].url == answers[1].url and Dataset.objects.count() == 1


def test_deleting_a_dataset_that_failed_takes_its_files(client, django_capture_on_commit_callbacks):
    form(client, uploads=[send(client, jsonl(9)).pk])
    made = Dataset.objects.get()
    Job.objects.update(state=State.FAILED)
    with django_capture_on_commit_callbacks(execute=True):
        client.post(f"/datasets/{made.pk}/delete/")
    assert not made.folder.exists() and Upload.objects.get().dataset is None


def test_unfinished_files_are_listed_and_can_be_deleted(client, django_capture_on_commit_callbacks):
    data = jsonl(9, CHUNK * 2)
    pk = begin(client, data, "long.jsonl").json()["id"]
    put(client, pk, data, 0)
    page = client.get("/datasets/new/").content.decode()
    assert "long.jsonl" in page and "50.0 % of 8.0 MiB are here" in page
    with django_capture_on_commit_callbacks(execute=True):
        assert client.post(f"/uploads/{pk}/delete/").url == "/datasets/new/"
    assert not Upload.objects.exists()


def test_the_page_asks_as_much_for_many_uploads_as_for_few(client, alice):
    dataset, asked = rows.dataset(alice.team), []
    for there_are in (2, 16):  # half of them are whole
        for n in range(Upload.objects.count(), there_are):
            upload = Upload.begin(alice.team, alice, f"{n}.txt", 9, b"words")
            Upload.objects.filter(pk=upload.pk).update(received=9 * (n % 2), dataset=dataset)
        with CaptureQueriesContext(connection) as caught:
            page = client.get("/datasets/new/").content.decode()
        assert f"{there_are - 1}.txt" in page and f"{there_are - 2}.txt" in page
        asked.append(len(caught))
    assert asked[0] == asked[1]


def test_who_is_in_no_team_uploads_nothing(client, alice):
    alice.teams.clear()
    assert begin(client, jsonl(9)).status_code == 403


@pytest.mark.django_db(transaction=True)
def test_parts_sent_by_many_at_once_make_one_file(alice, client_of):
    data = jsonl(20_000)
    row = Upload.begin(alice.team, alice, "texts.jsonl", len(data), data[:HEAD])
    step, clients = 60_000, [client_of(alice) for _ in range(3)]

    def tab(client):
        at = 0
        while at < len(data):
            at = put(client, row.pk, data, at, min(len(data), at + step)).json()["received"]
        connection.close()

    threads = [threading.Thread(target=tab, args=[client]) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    row.refresh_from_db()
    assert row.whole and row.sha256 == sha256(data) == sha256(row.path.read_bytes())
    assert UploadedDatasetForm(team=alice.team, owner=alice).unfinished() == []


@pytest.mark.django_db(transaction=True)
def test_tabs_that_begin_the_same_file_at_once_get_the_same_upload(alice, client_of):
    data, ready, got = jsonl(50), threading.Barrier(4), []

    def tab(client):
        ready.wait(20)
        got.append(begin(client, data).json()["id"])
        connection.close()

    threads = [threading.Thread(target=tab, args=[client_of(alice)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == 4 and len(set(got)) == 1
