"""What some documents, spread over a dataset, are like: their languages, and how many come twice."""

from collections import Counter
from pathlib import Path
from typing import Any

from jobs.ml.document_rows import DocumentRows
from jobs.ml.store import installed, read_json_if_there, write_json

SAMPLE, PLACES = 1000, 25  # documents, taken in a row at so many places
READ = 1000  # characters of a document by which its language is told
SURE = 0.5  # probability from which a language counts
NAME = "sample.json"


def sample(folder: Path) -> dict[str, Any]:
    """Measured once and kept beside the documents. Raises FileNotFoundError where there are none."""
    path, documents = folder / NAME, len(DocumentRows(folder))
    measured_by = {"of": documents, "by": f"py3langid {installed('py3langid')}", "read": READ, "sure": SURE}
    kept = read_json_if_there(path)
    if kept.items() >= measured_by.items():
        return kept
    found = {**measure(DocumentRows(folder)), **measured_by}
    write_json(path, found)
    return found


def measure(rows: DocumentRows) -> dict[str, Any]:
    """{"documents", "languages": {code: documents, commonest first}, "unsure", "duplicates"}"""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    texts = spread(rows)
    languages: Counter[str] = Counter()
    for text in texts:
        language, probability = identifier.classify(text[:READ])
        languages[language if probability >= SURE and language != "zxx" else ""] += 1
    unsure = languages.pop("", 0)
    return {
        "documents": len(texts),
        "languages": dict(languages.most_common()),
        "unsure": unsure,
        "duplicates": len(texts) - len(set(texts)),
    }


def spread(rows: DocumentRows) -> list[str]:
    """All documents, where they are few; else as many in a row at each of the places."""
    total = len(rows)
    if total <= SAMPLE:
        return [text.as_py() for _, texts in rows.texts(0) for text in texts]
    run, found = SAMPLE // PLACES, []
    for place in range(PLACES):
        start = place * (total - run) // (PLACES - 1)
        wanted = run
        for _, texts in rows.texts(start):
            found += [text.as_py() for text in texts.slice(0, wanted)]
            wanted = run - len(found) % run if len(found) % run else 0
            if not wanted:
                break
    return found
