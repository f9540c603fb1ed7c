"""From a model and a text to a labelled feature, by clicking, as a newcomer would."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.ml.tiny import save_model, tiny_model

READY = 90_000  # ms: a job may take so long on two busy cores


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A tiny model and a text with HTML, control characters and right-to-left marks, as files on this machine."""
    folder = tmp_path_factory.mktemp("sources")
    save_model(tiny_model("llama"), folder / "tiny-llama")
    documents = [
        f"Document {n}: the quick <b>brown</b> fox\u202e jumps over\x07 dog number {n}. " * 4 for n in range(300)
    ]
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": d, "n": n}) for n, d in enumerate(documents)))
    return folder


def ready(page):
    """Wait on the page itself: the live path brings it to the present."""
    expect(page.locator("main .badge").filter(has_text=re.compile("Ready|Succeeded")).first).to_be_visible(
        timeout=READY
    )


@pytest.mark.slow
def test_the_main_path_can_be_walked_by_clicking(page, sources):
    page.goto("/")
    expect(page.get_by_role("heading", level=1)).to_be_visible()

    page.get_by_role("link", name="Add model").first.click()
    page.get_by_label("Hub id or folder").fill(str(sources / "tiny-llama"))
    page.get_by_role("button", name="Add model").click()
    ready(page)
    expect(page.locator("main")).to_contain_text("hook_resid_post", timeout=READY)

    page.goto("/datasets/new/")
    page.get_by_label("Hub id, file or folder").fill(str(sources / "texts.jsonl"))
    page.get_by_label("Text column").fill("text")
    page.get_by_role("button", name="Add dataset").click()
    ready(page)
    expect(page.locator("main")).to_contain_text("300", timeout=READY)

    page.goto("/tokenizations/new/")
    page.get_by_label("Context length").fill("32")
    page.get_by_role("button", name="Tokenize").click()
    ready(page)

    page.goto("/trainings/new/")
    page.get_by_label("Width", exact=True).fill("64")
    page.get_by_label("k", exact=True).fill("4")
    page.get_by_label("Tokens to train on").fill("20000")
    page.locator("summary", has_text="Expert").click()
    page.get_by_label("Batch", exact=True).fill("512")
    page.get_by_label("Name", exact=True).fill("clicked")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("clicked")
    ready(page)

    page.goto("/saes/")
    page.get_by_role("link", name="clicked").first.click()
    page.get_by_role("button", name=re.compile("scan", re.I)).first.click()
    ready(page)

    page.goto("/saes/")
    page.get_by_role("link", name="clicked").first.click()
    page.get_by_role("link", name=re.compile("features", re.I)).first.click()
    page.locator("table a[href*='/features/']").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Feature")
    peak = page.locator(".tok.peak").first
    peak.focus()
    shown = peak.evaluate("token => getComputedStyle(token, '::after').content")
    assert shown == f'"{peak.get_attribute("data-value")}"', "the value is there for the keyboard, too"
    page.get_by_role("textbox", name="Label").fill("<i>animals</i> that jump")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("main")).to_contain_text("<i>animals</i> that jump")
    assert page.wrong == []


def test_a_wrong_folder_is_named_by_the_form_and_what_was_typed_stays(page):
    page.goto("/models/new/")
    page.get_by_label("Hub id or folder").fill("/no/such/folder")
    page.get_by_role("button", name="Add model").click()
    expect(page.locator(".error")).to_contain_text("no file or folder /no/such/folder")
    expect(page.get_by_label("Hub id or folder")).to_have_value("/no/such/folder")


def test_pages_work_without_scripts(chromium, signed_in, studio):
    context = chromium.new_context(storage_state=signed_in, base_url=studio.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/models/new/")
    page.get_by_label("Hub id or folder").fill("two words")
    page.get_by_role("button", name="Add model").click()
    expect(page.locator(".error")).to_contain_text("neither a hub id")
    context.close()
