"""Many SAEs of one training, from the form to their pages."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.ml.tiny import documents, save_model, tiny_model

LISTED = """
from mistudio.models import Team
from tests import rows
team = Team.default()
rows.tokenization(team, "listed-tokens", language_model=rows.language_model(team, "listed-model"))
"""
READY = 120_000  # ms: a job may take so long on two busy cores


@pytest.fixture(scope="module")
def tokens(studio, tmp_path_factory):
    """A tiny model, and a text as its tokens, made by commands."""
    folder = tmp_path_factory.mktemp("sources")
    save_model(tiny_model("llama"), folder / "tiny-llama")
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents(400)))
    studio.manage("add_model", str(folder / "tiny-llama"), "--name", "swept-model")
    studio.manage("add_dataset", str(folder / "texts.jsonl"), "--name", "swept-texts")
    studio.manage("tokenize", "swept-texts", "swept-model", "--context-length", "32", "--name", "swept-tokens")
    return "swept-tokens"


def opened(page, tokens, model):
    page.goto("/trainings/new/")
    chosen = page.get_by_label("Tokenization").locator("option", has_text=tokens).get_attribute("value")
    page.goto(f"/trainings/new/?tokenization={chosen}")
    expect(page.locator("#plan")).to_contain_text(model)
    return page


@pytest.fixture(scope="module")
def listed(shell):
    """A text and a model that nothing is behind."""
    shell(LISTED)


def test_a_form_shows_the_options_of_what_is_ticked_and_follows_what_is_typed(page, listed):
    form = opened(page, "listed-tokens", "listed-model")
    levels, k, bandwidth = (form.locator(f"[name={name}]") for name in ("levels", "k", "bandwidth"))
    expect(k).to_be_visible()
    expect(levels).to_be_hidden()
    expect(form.get_by_label("Site to write")).to_be_hidden()
    form.get_by_label("Matryoshka BatchTopK").check()
    form.get_by_label("TopK", exact=True).uncheck()
    expect(levels).to_be_visible()
    expect(bandwidth).to_be_hidden()
    form.get_by_label("JumpReLU").check()
    expect(bandwidth).to_be_visible()
    form.get_by_label("Width", exact=True).fill("32, 64")
    k.fill("2, 4")
    expect(form.locator("#what")).to_contain_text("6 SAEs")
    expect(form.locator("#what")).to_contain_text("4 Matryoshka BatchTopK: 2 widths × 2 values of k")
    form.get_by_text("Each of them").click()
    k.fill("2, 4, 8")
    expect(form.locator("#what")).to_contain_text("8 SAEs")
    expect(form.locator("#each ol")).to_be_visible()
    form.get_by_label("Width", exact=True).fill("wide")
    expect(form.locator("#what")).to_contain_text("“wide” is none")
    form.get_by_label("Transcoder", exact=True).check()
    expect(form.get_by_label("Site to write")).to_be_visible()
    assert form.wrong == []


def test_without_scripts_all_options_are_there_under_the_kinds_that_have_them(chromium, signed_in, studio, listed):
    context = chromium.new_context(storage_state=signed_in, base_url=studio.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/trainings/new/")
    for name in ("k", "levels", "bandwidth", "p_end", "writes"):
        expect(page.locator(f"[name={name}]")).to_be_visible()
    expect(page.get_by_role("group", name="Matryoshka BatchTopK", exact=True)).to_contain_text("Levels")
    context.close()


@pytest.mark.slow
def test_two_widths_and_two_ks_are_four_saes_that_go_live_and_end_as_links(page, tokens):
    opened(page, tokens, "swept-model")
    page.get_by_label("Width", exact=True).fill("32, 64")
    page.get_by_label("k", exact=True).fill("2, 4")
    expect(page.locator("#what")).to_contain_text("4 SAEs: 2 widths × 2 values of k")
    page.get_by_label("Tokens to train on").fill("400000")
    page.get_by_label("Name", exact=True).fill("swept")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("swept")
    page.evaluate("() => { window.stayed = true; }")

    rows = page.locator("#saes tbody tr")
    expect(rows).to_have_count(4)
    for n, said in enumerate(("32 · k 2", "32 · k 4", "64 · k 2", "64 · k 4")):
        expect(rows.nth(n).locator("th")).to_have_text(said)
        expect(rows.nth(n).locator("[data-label=EV]")).to_have_text(re.compile(r"0\.\d+"), timeout=READY)
    expect(page.locator("main .badge").first).to_have_text("Running")
    assert rows.locator("th a").count() == 0, "there are none yet"

    expect(page.locator("main .badge").first).to_have_text("Ready", timeout=READY)
    expect(rows.locator("th a")).to_have_count(4)
    assert page.evaluate("() => window.stayed"), "the page was not loaded again"
    page.locator("#saes thead a", has_text="L0").click()
    expect(page).to_have_url(re.compile(r"sort=l0"))
    for n in (0, 1):
        expect(rows.nth(n).locator("th")).to_contain_text("k 2")
    page.locator("#saes tbody th a").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("swept")
    expect(page.locator("main")).to_contain_text("its 4 SAEs")
    page.get_by_role("link", name="its 4 SAEs").click()
    expect(page.locator("main tbody tr")).to_have_count(4)
    assert page.wrong == []
