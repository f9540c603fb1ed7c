"""Looking an id up on the hub, in a studio of its own before a hub of its own."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Studio
from tests.hub_server import HubServer

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3, "hidden_size": 32}
FILES = {"config.json": json.dumps(CONFIG).encode(), "tokenizer.json": b"{}", "model.safetensors": b"w" * 400_000}


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        server.add("model", "owner/tiny", FILES)
        server.add("model", "owner/slow", FILES)
        yield server


@pytest.fixture(scope="module")
def own_studio(hub, tmp_path_factory):
    studio = Studio(tmp_path_factory.mktemp("hub-studio"))
    studio.env |= {"HF_ENDPOINT": hub.url}
    studio.manage("migrate", "--verbosity", "0")
    studio.start("--no-worker")
    yield studio
    studio.stop()


@pytest.fixture(scope="module")
def state(chromium, own_studio):
    context = chromium.new_context()
    context.new_page().goto(own_studio.login_link())
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def open_page(chromium, own_studio, state):
    contexts = []

    def make(**options):
        context = chromium.new_context(storage_state=state, base_url=own_studio.url, **options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        return context.new_page()

    yield make
    for context in contexts:
        context.close()


def test_an_id_that_is_typed_is_looked_up_by_itself_and_stays_in_the_address(open_page):
    page = open_page()
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto("/models/new/")
    page.get_by_label("Hub id or folder").fill("owner/tiny")
    page.get_by_label("Name").fill("mine")
    preview = page.locator("#preview")
    expect(preview).to_contain_text("Can be added")
    expect(page).to_have_url(re.compile("source=owner%2Ftiny.*look=1"))
    page.get_by_label("Hub id or folder").fill("owner/tinny")
    page.get_by_role("button", name="Look up").click()
    expect(preview).to_contain_text("Did you mean owner/tiny?")
    assert page.get_by_label("Name").input_value() == "mine" and wrong == []


def test_without_javascript_the_button_looks_up(open_page):
    page = open_page(java_script_enabled=False)
    page.goto("/models/new/")
    page.get_by_label("Hub id or folder").fill("owner/tiny")
    page.get_by_role("button", name="Look up").click()
    expect(page.locator("#preview")).to_contain_text("Can be added")
    assert page.get_by_label("Hub id or folder").input_value() == "owner/tiny"


def test_other_pages_answer_while_a_look_up_waits_for_the_hub(hub, open_page):
    waiting, other = open_page(), open_page()
    other.goto("/models/")
    hub.fault("/api/models/owner/slow", drips=0.1)  # five seconds in all
    waiting.goto("/models/new/")
    waiting.get_by_label("Hub id or folder").fill("owner/slow")
    waiting.get_by_role("button", name="Look up").click()
    other.goto("/datasets/")
    expect(waiting.locator("#preview")).not_to_contain_text("Can be added")
    expect(waiting.locator("#preview")).to_contain_text("Can be added", timeout=20_000)
