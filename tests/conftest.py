import fcntl
import functools
import gc
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.conf import settings
from django.test import Client

from tests.hub_server import HubServer
from tests.settings import FOLDER

ROOT = Path(__file__).resolve().parent.parent
# A shell that starts the tests in its background lets them and all their processes ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Processes that tests start use the settings of the site, and find the tests' data folder in the environment.
os.environ["DJANGO_SETTINGS_MODULE"] = "mistudio.settings"
if importlib.util.find_spec(
    "triton"
):  # without a GPU its kernels are interpreted, which it decides when it is imported
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def require(name: str, there: bool, why: str) -> None:
    """Skip a test that needs what is not there, unless MISTUDIO_REQUIRE names it: then its absence is a failure."""
    if there:
        return
    if name in os.environ.get("MISTUDIO_REQUIRE", "").replace(",", " ").split():
        pytest.fail(f"{name} is required: {why}")
    pytest.skip(why)


# ---- workers


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported stays until the end: the search for garbage passes it over."""
    gc.disable()
    collected = yield
    gc.freeze()
    gc.enable()
    return collected


@functools.cache
def company(file):
    """With whom the tests of a file share what takes long to make: a studio and its browser, the process that is forked
    to be killed, or what a fixture makes for the file. They run on one worker."""
    if file.startswith("tests/browser/"):
        return "browser"
    text = (ROOT / file).read_text()
    return "killed" if "killed_at" in text else file if 'scope="module"' in text else ""


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items):
    """The browser comes first, it takes longest; tests without company come last, they fill the gaps."""
    for item in items:
        if item.path.is_relative_to(ROOT / "tests" / "browser"):
            item.add_marker(pytest.mark.browser)
    yield
    groups = {item: company(item.nodeid.partition("::")[0]) for item in items}
    items.sort(key=lambda item: (not groups[item], groups[item] != "browser"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return company(nodeid.partition("::")[0]) or nodeid

    config.option.loadscopereorder = False
    return Together(config, log)


# ---- database


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """An SQLite file with all tables. Migrating takes seconds, so whoever needs one first makes it for all workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    file = folder / "migrated.sqlite3"
    with (folder / "migrated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            done = manage("migrate", "--verbosity", "0", env={"MISTUDIO_DATA": str(folder / "new"), "DATABASE_URL": ""})
            assert done.returncode == 0, done.stderr
            (folder / "new" / "mistudio.sqlite3").rename(file)
    return file


@pytest.fixture(scope="session")
def django_db_keepdb(request):
    """A database that is a file is there before the tests: a copy of the one that is migrated for all."""
    if not settings.DATABASES["default"]["ENGINE"].endswith("sqlite3"):
        return request.config.getvalue("reuse_db")
    shutil.copy(request.getfixturevalue("migrated"), settings.DATABASES["default"]["TEST"]["NAME"])
    return True


@pytest.fixture(scope="session")
def django_db_modify_db_settings_xdist_suffix(request):
    """A file needs no suffix, its folder belongs to one process; a database of a server does."""
    if settings.DATABASES["default"]["ENGINE"].endswith("sqlite3"):
        return
    from pytest_django.fixtures import _set_suffix_to_test_databases

    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        _set_suffix_to_test_databases(suffix=worker)


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup):
    """Processes that tests start find the tests' database."""
    from django.db import connection

    if url := os.environ.get("DATABASE_URL"):
        os.environ["DATABASE_URL"] = urlunsplit(urlsplit(url)._replace(path=f"/{connection.settings_dict['NAME']}"))
    return django_db_setup


@pytest.fixture(autouse=True)
def no_files_of_other_tests():
    """Ids of rows begin anew with each test, so must the folders that are named after them."""
    yield
    for folder in FOLDER.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def languages_are_learnt_once():
    """What tells languages takes half a second to load, and a job loads it for each dataset in a process of its own."""
    from py3langid.langid import LanguageIdentifier

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageIdentifier, "from_model_file", functools.cache(LanguageIdentifier.from_model_file))
        yield


@pytest.fixture(scope="session", autouse=True)
def the_power_stays_on():
    """What a process wrote outlives it, however it ends: only for the end of the machine must it wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def glances_are_short():
    """A training looks at what is kept of the predictions ten times on its way: here that would be most of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.kinds.train_sae.GLANCE_TOKENS", 64)
        yield


# ---- people: alice and bob are one team, charlie is a stranger


def person(name, team):
    from mistudio.models import Membership, User

    user = User.objects.create_user(name, f"{name}@example.org", "correct horse battery")
    Membership.objects.filter(user=user).delete()
    Membership.objects.create(user=user, team=team)
    return user


@pytest.fixture
def team(db):
    from mistudio.models import Team

    return Team.objects.get_or_create(name="Home team")[0]


@pytest.fixture
def alice(team):
    return person("alice", team)


@pytest.fixture
def bob(team):
    return person("bob", team)


@pytest.fixture
def charlie(db):
    from mistudio.models import Team

    return person("charlie", Team.objects.create(name="Strangers"))


@pytest.fixture
def client_of():
    """A browser in which this person is signed in. With enforce_csrf_checks=True as strict as a real one."""

    def make(user, **options):
        client = Client(**options)
        client.force_login(user)
        return client

    return make


# ---- servers


@pytest.fixture(scope="session")
def hub_server():
    with HubServer() as server:
        yield server


@pytest.fixture
def hub(hub_server):
    """A hub on this machine in which nothing is yet."""
    hub_server.forget()
    return hub_server


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
    """A Redis of our own, or the one that MISTUDIO_TEST_REDIS_URL names."""
    if url := os.environ.get("MISTUDIO_TEST_REDIS_URL"):
        yield url
        return
    server = shutil.which("redis-server")
    require("redis", server is not None, "redis-server is not installed")
    port = free_port()
    process = subprocess.Popen(
        [
            server,
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(tmp_path_factory.mktemp("redis")),
        ],
        stdout=subprocess.DEVNULL,
    )
    for _ in range(200):
        if listens(port):
            break
        time.sleep(0.1)
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait(10)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory):
    """A PostgreSQL of our own, or the one that MISTUDIO_TEST_POSTGRES_URL names, where databases may be made."""
    if url := os.environ.get("MISTUDIO_TEST_POSTGRES_URL"):
        yield url
        return
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").is_dir() else []
    tools = Path(shutil.which("initdb") or (found[-1] / "initdb" if found else "")).parent
    # The server refuses to run as root.
    other = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    there = (tools / "initdb").exists() and (not other or shutil.which("runuser") is not None)
    require("postgres", there, "PostgreSQL is not installed")
    folder, port = Path(tempfile.mkdtemp(prefix="mistudio-postgres-")), free_port()
    if other:
        shutil.chown(folder, "postgres")
    run = functools.partial(subprocess.run, check=True, capture_output=True, cwd="/")
    run([*other, tools / "initdb", "-D", folder / "db", "-U", "mistudio", "-A", "trust", "--no-sync"])
    options = f"-F -c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={folder}"
    run([*other, tools / "pg_ctl", "-D", folder / "db", "-w", "-l", folder / "log", "-o", options, "start"])
    yield f"postgresql://mistudio@127.0.0.1:{port}/postgres"
    run([*other, tools / "pg_ctl", "-D", folder / "db", "-m", "immediate", "stop"])
    shutil.rmtree(folder, ignore_errors=True)


def manage(*arguments, env=None, timeout=120, **options):
    """Run a management command as a process of its own, on the tests' data."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )
