"""What each strength of the junk filter removes, and what it leaves."""

import time

import pytest

from jobs.ml.junk import STRENGTHS, sift
from jobs.ml.packing import pack
from tests.ml.tiny import decoder_tokenizer, documents

CODE = "def f(x):\n    if x:\n        return {'a':  1}\n\n    return None  # nothing to be returned from here\n"
PROSE = "The cat sat on the mat, and the dog ran over the hills while rain fell. " * 4 + "The end."
HINDI = "बिल्ली चटाई पर बैठी थी और कुत्ता पहाड़ियों पर दौड़ रहा था जबकि बारिश हो रही थी। " * 4


def left(text: str, strength: str) -> str:
    return sift(text, STRENGTHS[strength].rules)[0]


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(
    "text", [PROSE, HINDI, "日本語の文章です。" * 30, "C++ and C# and .NET, " * 15, "e\u0301a\u200db" * 60]
)
def test_text_of_any_script_is_left_as_it_is(text, strength) -> None:
    assert left(text.strip(), strength) == text.strip()


@pytest.mark.parametrize("strength", ["light", "moderate", "strict"])
def test_the_indentation_of_code_stays(strength) -> None:
    assert left(CODE, strength) == CODE


@pytest.mark.parametrize(
    ("text", "first", "becomes"),
    [
        ("a\x00b\ufeffc\x1b[0m\u202e", "light", "abc[0m"),
        (" \n\t ", "light", ""),
        ("one     two", "moderate", "one two"),
        ("one   \ntwo", "moderate", "one\ntwo"),
        ("one\n\n\n\n\ntwo", "moderate", "one\n\ntwo"),
        ("=" * 40 + "x", "moderate", "===x"),
        ("Ah" + "!" * 12, "moderate", "Ah!!!"),
        ("Ah" + "!" * 9, "moderate", "Ah" + "!" * 9),
        (f"{PROSE}\nand this line comes twice\nbut\nand this line comes twice\nbut", "strict",
         f"{PROSE}\nand this line comes twice\nbut\nbut"),
        ("a short one", "strict", ""),
        (f"{PROSE}\nWe use cookies to improve this site.\n{PROSE}x", "aggressive", f"{PROSE}\n\n{PROSE}x"),
        ("@#$%^&*()_+ " * 30, "aggressive", ""),
        ("Too short to be of any use, though it is a sentence and longer than the strict one.", "aggressive", ""),
    ],
)  # fmt: skip
def test_a_rule_holds_from_its_strength_on_and_not_before(text, first, becomes) -> None:
    names = list(STRENGTHS)
    before = names[names.index(first) - 1]
    assert left(text, before) == text
    assert left(text, first).strip() == becomes.strip()


def test_each_strength_has_the_rules_of_the_one_before() -> None:
    rules = [{rule.name for rule in strength.rules} for strength in STRENGTHS.values()]
    short = {"empty documents"}  # short ones are empty ones too
    assert all(weaker - short <= stronger for weaker, stronger in zip(rules, rules[1:], strict=False))
    assert all(rule.says for strength in STRENGTHS.values() for rule in strength.rules)


def test_removed_characters_are_counted_by_rule() -> None:
    assert sift("a\x00\x00 " + "=" * 20, STRENGTHS["moderate"].rules)[1] == {
        "control characters": 2,
        "runs of punctuation": 17,
    }


@pytest.mark.parametrize(
    "text", [" " * 10**6 + "x", "\n" * 10**6, "=" * 10**6, "= " * 10**6, "x " * 10**6, "cookie " * 10**5]
)
def test_no_text_takes_long(text) -> None:
    started = time.process_time()
    left(text, "aggressive")
    assert time.process_time() - started < 3


def test_dropped_documents_and_removed_characters_are_in_the_statistics(tmp_path) -> None:
    docs = [*documents(100), "", "  ", "cat\x00", "cat"]
    settings = {"context_length": 16, "held_out": 0.2, "junk": "strict"}
    told = pack(lambda start: docs[start:], decoder_tokenizer(), tmp_path, **settings)
    short = [text for text in docs if len(text) > 0 and len("".join(text.replace("\x00", "").split())) < 50]
    assert told["documents"] == 104 and told["empty_documents"] == 1
    assert told["dropped_documents"] == {"short documents": len(short)}
    assert told["removed_characters"]["short documents"] == sum(len(text.replace("\x00", "")) for text in short)
    assert told["removed_characters"]["control characters"] == told["changed_documents"]["control characters"] == 1
