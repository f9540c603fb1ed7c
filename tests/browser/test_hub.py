"""Looking an id up on the hub, which is one of our own."""

import json
import re

import pytest
from playwright.sync_api import expect

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3, "hidden_size": 32}
FILES = {"config.json": json.dumps(CONFIG).encode(), "tokenizer.json": b"{}", "model.safetensors": b"w" * 400_000}


@pytest.fixture(autouse=True)
def repositories(hub):
    for name in ("tiny", "slow"):
        hub.add("model", f"owner/{name}", FILES)


def test_an_id_that_is_typed_is_looked_up_by_itself_and_stays_in_the_address(page):
    page.goto("/models/new/")
    page.get_by_label("Hub id or folder").fill("owner/tiny")
    page.get_by_label("Name").fill("mine")
    preview = page.locator("#preview")
    expect(preview).to_contain_text("Can be added")
    expect(page).to_have_url(re.compile("source=owner%2Ftiny.*look=1"))
    page.get_by_label("Hub id or folder").fill("owner/tinny")
    page.get_by_role("button", name="Look up").click()
    expect(preview).to_contain_text("Did you mean owner/tiny?")
    assert page.get_by_label("Name").input_value() == "mine" and page.wrong == []


def test_without_javascript_the_button_looks_up(chromium, signed_in, studio):
    context = chromium.new_context(storage_state=signed_in, base_url=studio.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/models/new/")
    page.get_by_label("Hub id or folder").fill("owner/tiny")
    page.get_by_role("button", name="Look up").click()
    expect(page.locator("#preview")).to_contain_text("Can be added")
    assert page.get_by_label("Hub id or folder").input_value() == "owner/tiny"
    context.close()


def test_other_pages_answer_while_a_look_up_waits_for_the_hub(hub, page):
    waiting, other = page, page.context.new_page()
    other.goto("/models/")
    hub.fault("/api/models/owner/slow", drips=0.15)  # for more than seven seconds, until this is changed
    waiting.goto("/models/new/")
    waiting.get_by_label("Hub id or folder").fill("owner/slow")
    waiting.get_by_role("button", name="Look up").click()
    other.goto("/datasets/")
    expect(waiting.locator("#preview")).not_to_contain_text("Can be added")
    hub.faults[-1].drips = 0
    expect(waiting.locator("#preview")).to_contain_text("Can be added", timeout=20_000)
