"""What the user guide says of kinds of SAE and their options is what the engine has."""

from pathlib import Path

import pytest

from jobs.ml.architectures import ARCHITECTURES
from jobs.ml.architectures.options import OPTIONS
from mistudio.forms.options import presets
from mistudio.models.plan import MOST

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "user-guide.md").read_text()
TRAINING = GUIDE[GUIDE.index("## 3. Training") : GUIDE.index("## 4. SAE")]
TABLES = [[cell.strip() for cell in line.strip("|").split("|")] for line in TRAINING.splitlines() if line[:1] == "|"]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_guide_has_every_option_with_its_presets_and_who_has_it(name):
    option = OPTIONS[name]
    rows = [row for row in TABLES if row[0] == option.label]
    assert rows == [[option.label, preset, ", ".join(labels), option.help] for preset, labels in presets(name).items()]


def test_the_guide_has_every_kind_and_what_it_rebuilds():
    spans = {True: "several sites from one code", False: "its site"}
    told = {row[0]: row[1] for row in TABLES if len(row) == 3 and row[0] not in ("kind", "---")}
    rebuilt = {
        one.label: "another site than it reads" if one.transcodes else spans[one.spans]
        for one in ARCHITECTURES.values()
    }
    assert told == rebuilt and f"{MOST} at most" in TRAINING
