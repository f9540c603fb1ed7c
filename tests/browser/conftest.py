"""A whole studio of its own, site and workers, and a real Chromium before it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import require

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30_000  # ms: the machine may be busy
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Studio:
    """`manage.py studio` on a data folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.env = {**os.environ, "MISTUDIO_DATA": str(folder), "PYTHONUNBUFFERED": "1"}
        self.env.pop("DATABASE_URL", None)
        self.env.pop("MISTUDIO_TEST_DATABASE", None)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def manage(self, *args):
        command = [sys.executable, "manage.py", *args]
        done = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, *args):
        log = (self.folder / "studio.log").open("a")
        command = [sys.executable, "manage.py", "studio", "--port", str(self.port), *args]
        self.process = subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/login/", timeout=2)
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "studio.log").read_text()[-3000:])

    def stop(self, how=signal.SIGINT):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(90)

    def login_link(self):
        return json.loads(self.manage("createadmin", "--url", self.url, "--json"))["link"]


LISTEN = """
import json, sys
for line in sys.stdin:
    names = {}
    exec(json.loads(line), names)
    print(json.dumps(names.get("answer")), flush=True)
"""


@pytest.fixture(scope="package")
def shell(studio):
    """Runs code in one `manage.py shell` of the studio, and gives what it calls `answer`."""
    command = [sys.executable, "manage.py", "shell", "--verbosity", "0", "--command", LISTEN]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=studio.env, **pipes) as process:

        def run(code):
            process.stdin.write(json.dumps(code) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, "the code failed, see standard error"
            return json.loads(answer)

        yield run
        process.stdin.close()


@pytest.fixture(scope="package")
def studio(hub_server, migrated, tmp_path_factory):
    """It takes `hub_server` for the hub."""
    require("browser", CHROMIUM is not None, "Chromium is not installed")
    studio = Studio(tmp_path_factory.mktemp("studio"))
    studio.env |= {"HF_ENDPOINT": hub_server.url}
    shutil.copy(migrated, studio.folder / "mistudio.sqlite3")
    studio.start()
    yield studio
    studio.stop()


@pytest.fixture(scope="package")
def chromium(studio):
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-sync",
        "--no-first-run",
    ]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def signed_in(chromium, studio):
    """The cookies of an administrator who used the one-time link."""
    context = chromium.new_context()
    context.new_page().goto(studio.login_link())
    state = context.storage_state()
    context.close()
    return state


OVERTAKEN = ("htmx:afterRequest", "htmx:sendAbort")  # what htmx says where a newer request took the place of one


def is_wrong(message):
    return message.type == "error" and not message.text.startswith(OVERTAKEN)


@pytest.fixture(scope="package")
def window(chromium, signed_in, studio):
    """A signed-in window. The browser starts half a dozen processes for each one, so tests have their page in a tab."""
    context = chromium.new_context(storage_state=signed_in, base_url=studio.url)
    context.set_default_timeout(PATIENCE)
    context.new_page()  # with its last tab the window would close
    yield context
    context.close()


@pytest.fixture
def page(window, signed_in):
    """A signed-in page with what it wrote to its console that is wrong."""
    page = window.new_page()
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if is_wrong(message) else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.wrong = wrong
    yield page
    for tab in window.pages[1:]:
        tab.close()
    window.clear_cookies()
    window.add_cookies(signed_in["cookies"])
