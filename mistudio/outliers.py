"""What the page of an activation cache shows of one site: its norms as a figure, and the tokens with the largest."""

from typing import Any

from django.utils.safestring import SafeString

from jobs.ml.tokens import TokenShards
from mistudio.figures import histogram
from mistudio.models import ActivationCache
from mistudio.vocabulary import piece, read_vocabulary

BEFORE, AFTER, SHOWN = 8, 5, 12  # tokens around an outlier; outliers


def norm_figure(site: str, statistics: dict[str, Any]) -> SafeString:
    said = statistics["histogram"]
    edges = [10.0**power for power in said["edges"]]
    title = f"Norms of {site}, n = {statistics['tokens']:,} tokens"
    return histogram(said["counts"], edges, title=title, stretch=True, activation=True, width=720, height=190)


def outliers(cache: ActivationCache, statistics: dict[str, Any]) -> list[dict[str, Any]]:
    """Largest first, with the text around each. Empty where the text is gone."""
    rows = statistics["outliers"][:SHOWN]
    try:
        shards = TokenShards(cache.tokenization.folder, cache.split)
        places = [divmod(row["position"], shards.context_length) for row in rows]
        sequences = [sequence for sequence, _ in places]
        ids, lengths = shards.rows(sequences)[0], shards.lengths(sequences)
    except (OSError, ValueError, IndexError):
        return []
    pieces = read_vocabulary(cache.language_model.folder)
    return [
        {"norm": row["norm"], "sequence": sequence, "place": place, "tokens": around(line[:n].tolist(), place, pieces)}
        for row, (sequence, place), line, n in zip(rows, places, ids, lengths, strict=True)
    ]


def around(ids: list[int], place: int, pieces: list[str]) -> list[tuple[str, float | None, int | None, bool]]:
    """As the tag `tokens` takes them, the outlier marked."""
    return [
        (
            piece(pieces, ids[at]),
            1.0 if at == place else None,
            9 if at == place else None,
            at == place,
        )
        for at in range(max(0, place - BEFORE), min(len(ids), place + AFTER + 1))
    ]
