"""What a labelled text shows of an SAE: can few latents tell the classes (sparse probing), and does taking out the
latents of a class harm that class alone (TPP), or take away what goes along with it where it should not (SCR)?

After Gurnee et al. 2023 and SAEBench (Karvonen et al. 2025). Everything happens on means over the tokens of a text: as
decoding is linear, taking latents out of every token takes them out of the mean.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.ml.bootstrap import RESAMPLES, Formula, Sums, UnitSums, ratio
from jobs.ml.logistic import Probe, fit
from jobs.ml.pooled import Pooled, difference
from jobs.ml.sae import Sae

KS = (1, 2, 5)
TAKEN_OUT = (2, 5, 10, 20, 50, 100, 500)  # latents
LEAST_HARM = 0.001  # in accuracy: no resample is divided by less


class Scores:
    """Right and wrong answers by text, for figures that are means over classes."""

    def __init__(self, texts: int, resamples: int) -> None:
        self.texts, self.resamples = texts, resamples
        self.columns: dict[str, Tensor] = {}

    def note(self, name: str, rows: Tensor, values: Tensor) -> None:
        self.columns[name] = torch.zeros(self.texts, dtype=torch.float64).index_put_((rows,), values.double())

    def answer(self, name: str, rows: Tensor, said: Tensor, truth: Tensor) -> None:
        said, truth = said.cpu(), truth.cpu()
        for part, values in {
            "n": torch.ones_like(truth),
            "right": said == truth,
            "tp": said & truth,
            "wrong": said != truth,
        }.items():
            self.note(f"{name}.{part}", rows, values)

    def figure(self, formula: Formula) -> dict[str, Any]:
        """Drawn from the texts that were asked about."""
        sums = UnitSums(list(self.columns), 0, "cpu")
        asked = torch.stack([column for name, column in self.columns.items() if name.endswith(".n")])
        rows = asked.any(0).nonzero().flatten()
        sums.add(torch.arange(len(rows)), {name: column[rows] for name, column in self.columns.items()})
        return sums.figures([formula], self.resamples)[formula.name]


def accuracy(s: Sums, name: str) -> np.ndarray:
    return ratio(s[f"{name}.right"], s[f"{name}.n"])


def f1(s: Sums, name: str) -> np.ndarray:
    return ratio(2 * s[f"{name}.tp"], 2 * s[f"{name}.tp"] + s[f"{name}.wrong"])


def mean(values: list[np.ndarray]) -> np.ndarray:
    return np.mean(values, axis=0)


def class_probes(pooled: Pooled) -> list[Probe]:
    """Of each class against the rest, from what the SAE rebuilds."""
    parts = (pooled.balanced(pooled.labels == number, train=True) for number in range(len(pooled.names)))
    return [fit(pooled.y[rows], says) for rows, says in parts]


def sparse_probing(
    pooled: Pooled, probes: list[Probe], resamples: int = RESAMPLES
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures, and of each class the latents by which it is told.

    One class against the rest, as many texts of each. The k latents whose means differ most between the two are
    chosen on the texts to train on; accuracy and F1 are of the others, and a mean over the classes."""
    scores = Scores(len(pooled.labels), resamples)
    about = []
    for number, name in enumerate(pooled.names):
        truth = pooled.labels == number
        rows, says = pooled.balanced(truth, train=True)
        tests, true = pooled.balanced(truth, train=False)
        apart = difference(pooled.f, rows[says], rows[~says]).abs()
        order = apart.topk(min(max(KS), len(apart))).indices
        for k in KS:
            chosen = order[:k]
            probe = fit(pooled.f[rows[:, None], chosen], says)
            scores.answer(f"{k}.{number}", tests, probe.says(pooled.f[tests[:, None], chosen]), true)
        scores.answer(f"all.{number}", tests, probes[number].says(pooled.y[tests]), true)
        own = scores.columns[f"1.{number}.right"].sum() / len(tests)
        about.append({"label": name, "latents": order.tolist(), "accuracy_1": float(own), "n": len(tests)})
    classes = range(len(pooled.names))

    def over_classes(name: str, ways: str, of: Any) -> dict[str, Any]:
        formula = Formula(name, 1, lambda s: mean([of(s, f"{ways}.{n}") for n in classes]))
        return scores.figure(formula)

    found = {"probe_accuracy": over_classes("probe_accuracy", "all", accuracy)}
    for k in KS:
        found[f"sparse_probing_accuracy_{k}"] = over_classes("sparse_probing_accuracy", f"{k}", accuracy)
        found[f"sparse_probing_f1_{k}"] = over_classes("sparse_probing_f1", f"{k}", f1)
    return found, about


def effects(sae: Sae, pooled: Pooled, probe: Probe, rows: Tensor, says: Tensor) -> Tensor:
    """[M]: how far each latent moves the probe from one side to the other, by its mean difference and its direction."""
    along = sae.W_dec.float() @ probe.weight.to(sae.W_dec.device, torch.float32)
    return difference(pooled.f, rows[says], rows[~says]) * along.cpu()


class TakenOut:
    """Latents int64 [k] with their directions, to be taken out of texts."""

    def __init__(self, sae: Sae, latents: Tensor) -> None:
        self.latents, self.directions = latents, sae.W_dec[latents.to(sae.W_dec.device)].float().cpu()

    def of(self, pooled: Pooled, rows: Tensor) -> Tensor:
        """y [n, D_out] of the texts without them."""
        return pooled.y[rows] - pooled.f[rows[:, None], self.latents] @ self.directions


def strongest(effect: Tensor, n: int) -> Tensor:
    """The latents that speak most for the class: n, or as many as do."""
    found = effect.topk(min(n, len(effect)))
    return found.indices[found.values > 0]


def tpp(sae: Sae, pooled: Pooled, probes: list[Probe], resamples: int = RESAMPLES) -> dict[str, Any]:
    """Targeted probe perturbation: by how much more the accuracy of a class' probe falls than that of the others when
    n latents of that class are taken out; mean over the classes."""
    classes = range(len(pooled.names))
    truths = [pooled.labels == number for number in classes]
    tests = [pooled.balanced(truth, train=False) for truth in truths]
    order = [effects(sae, pooled, probes[c], *pooled.balanced(truths[c], train=True)) for c in classes]
    found = {}
    for n in (n for n in TAKEN_OUT if n <= sae.width):
        scores = Scores(len(pooled.labels), resamples)
        taken = [TakenOut(sae, strongest(effect, n)) for effect in order]
        for c, (rows, true) in enumerate(tests):
            scores.answer(f"{c}", rows, probes[c].says(pooled.y[rows]), true)
            for target in classes:
                scores.answer(f"{c}.{target}", rows, probes[c].says(taken[target].of(pooled, rows)), true)

        def targeted(s: Sums) -> np.ndarray:
            falls = [[accuracy(s, f"{c}") - accuracy(s, f"{c}.{target}") for target in classes] for c in classes]
            return mean([falls[t][t] - mean([falls[c][t] for c in classes if c != t]) for t in classes])

        found[f"tpp_{n}"] = scores.figure(Formula("tpp", 1, targeted))
    return found


def scr(sae: Sae, pooled: Pooled, resamples: int = RESAMPLES) -> tuple[dict[str, Any], str]:
    """Spurious correlation removal: a probe of the label learns from texts in which the second label goes along with
    it. Taking out n latents of the second label should bring it nearer to a probe of balanced texts: the share of the
    way there. Of both labels the one whose biased probe is worse is told. Figures, or why there are none."""
    ways = [way for way in (Biased.of(pooled, False), Biased.of(pooled, True)) if way is not None]
    if not ways:
        return {}, "too few texts with each pair of the two commonest labels and second labels"
    way = min(ways, key=lambda one: one.accuracy)
    answers = {"biased": way.biased.says(pooled.y[way.rows]), "clean": way.clean.says(pooled.y[way.rows])}
    plain = Scores(len(pooled.labels), resamples)
    for name, said in answers.items():
        plain.answer(name, way.rows, said, way.truth)
    found = {"spurious_harm": plain.figure(Formula("spurious_harm", 1, harm))}
    if (found["spurious_harm"]["low"] or 0) <= 0:
        return (
            found,
            "what the second label costs a probe cannot be told from nothing: see the harm of the second label",
        )
    order = effects(sae, pooled, way.spurious, *way.spurious_rows).abs()  # on whichever side it speaks
    for n in (n for n in TAKEN_OUT if n <= sae.width):
        scores = Scores(len(pooled.labels), resamples)
        changed = way.biased.says(TakenOut(sae, strongest(order, n)).of(pooled, way.rows))
        for name, said in {**answers, "changed": changed}.items():
            scores.answer(name, way.rows, said, way.truth)

        def share(s: Sums) -> np.ndarray:
            return ratio(accuracy(s, "changed") - accuracy(s, "biased"), np.maximum(harm(s), LEAST_HARM))

        found[f"scr_{n}"] = scores.figure(Formula("scr", 1, share))
    return found, ""


def harm(s: Sums) -> np.ndarray:
    """By how much a probe is worse that learnt from texts in which both labels go together."""
    return accuracy(s, "clean") - accuracy(s, "biased")


class Biased:
    """Probes of one of two labels: from texts in which the other goes along with it, and from balanced ones."""

    @classmethod
    def of(cls, pooled: Pooled, swapped: bool) -> "Biased | None":
        """None where one of the four pairs is missing."""
        first, second = (pooled.seconds, pooled.labels) if swapped else (pooled.labels, pooled.seconds)
        sides = [torch.bincount(labels).topk(min(2, len(labels.unique()))).indices for labels in (first, second)]
        if min(map(len, sides)) < 2:
            return None
        there = torch.isin(first, sides[0]) & torch.isin(second, sides[1])
        yes, other = first == sides[0][0], second == sides[1][0]
        cells = [there & (yes == a) & (other == b) for a in (True, False) for b in (True, False)]
        least = [min(int((cell & (pooled.train == part)).sum()) for cell in cells) for part in (True, False)]
        return cls(pooled, cells, yes, other) if min(least) >= 5 else None

    def __init__(self, pooled: Pooled, cells: list[Tensor], yes: Tensor, other: Tensor) -> None:
        train, test = (equal([cell & (pooled.train == part) for cell in cells]) for part in (True, False))
        misleading = torch.cat([train[0], train[3]])  # both true, or neither
        everything = torch.cat(train)
        self.biased = fit(pooled.y[misleading], yes[misleading])
        self.clean = fit(pooled.y[everything], yes[everything])
        self.spurious_rows = everything, other[everything]
        self.spurious = fit(pooled.y[everything], other[everything])
        self.rows = torch.cat(test)
        self.truth = yes[self.rows]
        self.accuracy = float((self.biased.says(pooled.y[self.rows]) == self.truth).double().mean())


def equal(cells: list[Tensor]) -> list[Tensor]:
    """As many rows of each."""
    rows = [cell.nonzero().flatten() for cell in cells]
    n = min(map(len, rows))
    return [part[:n] for part in rows]
