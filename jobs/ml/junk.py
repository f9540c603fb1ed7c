"""What a junk filter takes out of a text before it is tokenized: five strengths, each with the rules of the one before.

A rule edits the text or drops the document. Letters and digits of every script are content, and so is the
indentation of code. What was removed is counted in characters, by rule.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

# Controls but tab and line breaks; soft hyphen, zero-width space, word joiner, byte order mark; reversals of direction.
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
TRAILING = re.compile(r"(?<![^\S\n])[^\S\n]++(?=\n)")  # a run is looked at once, however long it is
INNER = re.compile(r"(?<=\S)[^\S\n]{3,}+(?=\S)")
EMPTY_LINES = re.compile(r"\n{3,}+")
PUNCTUATION = re.compile(r"([^\w\s])\1{9,}")
BOILERPLATE = re.compile(
    r"^.{0,200}?(all rights reserved|terms of (use|service)|privacy policy|cookie (policy|settings)|"
    r"(use|accept)s? cookies|(enable|requires?) javascript|subscribe to our newsletter|sign up for our newsletter|"
    r"click here to|skip to (main )?content|share (this )?on (facebook|twitter)).{0,200}$",
    re.IGNORECASE | re.MULTILINE,
)
NO_LETTERS = re.compile(r"[^\w\s]|_")
REPEATED = 20  # characters: a shorter line may well come twice
SHORT, VERY_SHORT = 50, 200  # characters that are not white space
WORDS = 0.6  # of the characters that are not white space


@dataclass(frozen=True)
class Rule:
    name: str
    says: str
    edit: Callable[[str], str]  # "" drops the document


def squeeze(text: str) -> str:
    """Runs of spaces within a line to one, spaces before a line break to none, empty lines to one."""
    return EMPTY_LINES.sub("\n\n", INNER.sub(" ", TRAILING.sub("", text)))


def without_repeated_lines(text: str) -> str:
    if text.count("\n") == 0:
        return text
    seen: set[str] = set()
    kept = []
    for line in text.split("\n"):
        bare = line.strip()
        if len(bare) < REPEATED or bare not in seen:
            kept.append(line)
            seen.add(bare)
    return "\n".join(kept)


def without_boilerplate(text: str) -> str:
    return BOILERPLATE.sub("", text)


def at_least(n: int) -> Callable[[str], str]:
    return lambda text: text if sum(map(len, text.split())) >= n else ""


def mostly_words(text: str) -> str:
    others = NO_LETTERS.findall(text)
    marks = sum(unicodedata.category(c)[0] == "M" for c in others if c > "\x7f")
    characters = sum(map(len, text.split()))
    return text if characters - len(others) + marks >= WORDS * characters else ""


CONTROL = Rule("control characters", "invisible control characters are removed", lambda t: CONTROLS.sub("", t))
EMPTY = Rule("empty documents", "documents of nothing but white space are dropped", at_least(1))
WHITE = Rule("white space", "three or more spaces within a line become one, empty lines one", squeeze)
RUNS = Rule("runs of punctuation", "ten or more of one sign become three", lambda t: PUNCTUATION.sub(r"\1\1\1", t))
LINES = Rule(
    "repeated lines", f"a line of {REPEATED} characters or more that came before is removed", without_repeated_lines
)
BRIEF = Rule("short documents", f"documents under {SHORT} characters are dropped", at_least(SHORT))
PHRASES = Rule("boilerplate", "lines about cookies, JavaScript, newsletters or rights are removed", without_boilerplate)
SYMBOLS = Rule("mostly symbols", f"documents under {WORDS:.0%} letters and digits are dropped", mostly_words)
BRIEFER = Rule("short documents", f"documents under {VERY_SHORT} characters are dropped", at_least(VERY_SHORT))


@dataclass(frozen=True)
class Strength:
    title: str
    rules: tuple[Rule, ...]  # in this order: what drops a document looks at what the edits left

    @property
    def label(self) -> str:
        return f"{self.title}: {'; '.join(rule.name for rule in self.rules) or 'nothing is removed'}"


STRENGTHS = {
    "off": Strength("Off", ()),
    "light": Strength("Light", (CONTROL, EMPTY)),
    "moderate": Strength("Moderate", (CONTROL, WHITE, RUNS, EMPTY)),
    "strict": Strength("Strict", (CONTROL, LINES, WHITE, RUNS, BRIEF)),
    "aggressive": Strength("Aggressive", (CONTROL, PHRASES, LINES, WHITE, RUNS, SYMBOLS, BRIEFER)),
}


def sift(text: str, rules: tuple[Rule, ...]) -> tuple[str, dict[str, int]]:
    """What is left, "" for a dropped document, and the characters that each rule removed."""
    removed: dict[str, int] = {}
    for rule in rules:
        if not text:
            break
        left = rule.edit(text)
        if left != text:
            removed[rule.name] = removed.get(rule.name, 0) + len(text) - len(left)
        text = left
    return text, removed
