"""What a feature's page shows of the scan's evidence. Each part is read from disk when a template asks for it."""

from functools import cached_property
from typing import Any

from django.utils.safestring import SafeString

from jobs.ml.evidence import Evidence, Example
from jobs.ml.tokens import TokenShards
from mistudio.figures import density_histogram, histogram
from mistudio.models import Feature, Scan
from mistudio.vocabulary import piece, read_vocabulary

BEFORE, AFTER = 28, 16  # tokens shown around the strongest one


class FeatureEvidence:
    """Missing files are an empty part, not an error: the page says that a new scan would bring them back."""

    def __init__(self, scan: Scan, feature: Feature, whole: bool = False, n_examples: int = 20) -> None:
        self.scan, self.feature, self.whole, self.n_examples = scan, feature, whole, n_examples

    @cached_property
    def files(self) -> Evidence | None:
        try:
            return Evidence(self.scan.folder)
        except (OSError, ValueError):
            return None

    @cached_property
    def pieces(self) -> list[str]:
        return read_vocabulary(self.scan.tokenization.language_model.folder)

    def piece(self, token: int) -> str:
        return piece(self.pieces, token)

    @cached_property
    def examples(self) -> list[dict[str, Any]]:
        """The sequences where it fires most strongly."""
        return self.shown(self.files.examples(self.feature.index, self.n_examples)) if self.files else []

    @cached_property
    def weaker(self) -> list[dict[str, Any]]:
        """Sequences of lesser strength, one band after the other, the strongest band first."""
        if self.files is None or self.feature.dead:
            return []
        bands = self.files.quantile_examples(self.feature.index)
        size = self.feature.max_activation / len(bands)
        return [
            {"low": n * size, "high": (n + 1) * size, "examples": self.shown(examples[:3])}
            for n, examples in reversed(list(enumerate(bands[:-1])))
            if examples
        ]

    def shown(self, examples: list[Example]) -> list[dict[str, Any]]:
        if not examples:
            return []
        try:
            shards = TokenShards(self.scan.tokenization.folder, "held_out")
            numbers = [example.sequence for example in examples]
            (ids, _), lengths = shards.rows(numbers), shards.lengths(numbers)
        except (OSError, ValueError):
            return []
        tokens = (row[:length].tolist() for row, length in zip(ids, lengths, strict=True))
        return [self.one(example, row) for example, row in zip(examples, tokens, strict=True)]

    def one(self, example: Example, ids: list[int]) -> dict[str, Any]:
        values = dict(zip(example.places.tolist(), example.values.tolist(), strict=True))
        peak = max(values, key=lambda place: values[place])
        begin, end = (0, len(ids)) if self.whole else (max(0, peak - BEFORE), peak + AFTER)
        tokens = [
            (self.piece(ids[place]), values.get(place), self.step(values.get(place)), place == peak)
            for place in range(begin, min(end, len(ids)))
        ]
        return {
            "tokens": tokens,
            "max": example.peak,
            "position": peak,
            "source_sequence": example.sequence,
            "cut": begin > 0,
        }

    def step(self, value: float | None) -> int | None:
        """Of the heat scale, 0 to 9 of the feature's largest activation."""
        largest = self.feature.max_activation
        return None if not value or largest <= 0 else min(9, int(10 * value / largest))

    @cached_property
    def histogram(self) -> SafeString | str:
        if self.files is None or self.feature.dead:
            return ""
        counts, edges = self.files.histogram(self.feature.index)
        title = f"Activations of feature {self.feature.index:,} above zero, n = {self.feature.n_fired:,}"
        return histogram(counts.tolist(), edges.tolist(), title=title, unit="tokens", activation=True)

    @cached_property
    def _logits(self) -> dict[str, list[tuple[int, float]]]:
        return (self.files.logits(self.feature.index) if self.files else None) or {"top": [], "bottom": []}

    @property
    def top_logits(self) -> list[tuple[str, float]]:
        return [(self.piece(token), value) for token, value in self._logits["top"]]

    @property
    def bottom_logits(self) -> list[tuple[str, float]]:
        return [(self.piece(token), value) for token, value in self._logits["bottom"]]

    @cached_property
    def neighbours(self) -> list[tuple[int, float, str]]:
        """(index, cosine, label) by decoder direction, nearest first"""
        near = self.files.neighbours(self.feature.index) if self.files else []
        near = [(index, cosine) for index, cosine in near if index >= 0]
        rows = self.scan.sae.features.filter(index__in=[index for index, _ in near])
        labels = dict(rows.values_list("index", "label"))
        return [(index, cosine, labels.get(index, "")) for index, cosine in near]


def density_figure(scan: Scan) -> SafeString | str:
    """How often the features of a scan fire; nothing where its files are gone."""
    try:
        return density_histogram(Evidence(scan.folder).density)
    except (OSError, ValueError, AssertionError):
        return ""


def peak_tokens(evidence: Evidence, shards: TokenShards, index: int, n: int = 12) -> list[int]:
    """Ids of the tokens on which a feature peaks, strongest first: what a search by token looks in."""
    examples = evidence.examples(index, n)
    if not examples:
        return []
    ids, _ = shards.rows([example.sequence for example in examples])
    return [int(row[example.places[example.values.argmax()]]) for row, example in zip(ids, examples, strict=True)]
