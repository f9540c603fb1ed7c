"""The SAEs of a training beside each other: what tells them apart, how good each is, and which is best in what."""

from typing import Any

from django.utils.safestring import SafeString

from mistudio.figures.tradeoff import Dot, tradeoff_chart
from mistudio.models import Sae, Training
from mistudio.models.plan import differences

BEST = {"ev": max, "ce_recovered": max, "dead": min}  # fewer active latents are no merit of their own
COLUMNS = ("ev", "l0", "ce_recovered", "dead")
LIVE = ("fvu", "l0", "loss", "dead", "lr", "ce_recovered")
Row = dict[str, Any]


def side_by_side(row: Training, points: list[tuple[int, dict[str, float]]]) -> list[Row]:
    """Each SAE, in the order of the plan. Once it is ready, its figures are those of held-out tokens, else the newest
    of the run; how many latents are dead is of the run in both cases."""
    rows = {sae.number: sae for sae in row.saes.all()}
    newest = {name: value for _, values in points for name, value in values.items()}
    found = []
    for n, said in enumerate(differences(row.members)):
        live = {name: newest.get(f"{name}.{n}") for name in LIVE}
        live["ev"] = None if live["fvu"] is None else 1 - live["fvu"]
        sae = rows.get(n)
        ready = sae if sae and sae.ready else None
        found.append(
            {"number": n, "said": said, "sae": sae, "ready": ready, **live, **(measured(ready) if ready else {})}
        )
    mark_best(found)
    return found


def measured(sae: Sae) -> Row:
    return {"ev": sae.explained_variance, "l0": sae.l0, "ce_recovered": sae.ce_recovered}


def mark_best(rows: list[Row]) -> None:
    """`best`: the columns in which a row is. Where more than half are as good, none stands out."""
    for row in rows:
        row["best"] = set()
    for name, best in BEST.items():
        values = [row[name] for row in rows if row[name] is not None]
        if values and 2 * values.count(best(values)) <= len(rows):
            for row in rows:
                if row[name] == best(values):
                    row["best"].add(name)


def ordered(rows: list[Row], sort: str) -> list[Row]:
    """By a column, "-ev" the largest first; what was not measured comes last. By number where there is no such one."""
    name, down = sort.removeprefix("-"), sort.startswith("-")
    if name not in COLUMNS:
        return rows
    known = sorted((row for row in rows if row[name] is not None), key=lambda row: row[name], reverse=down)
    return known + [row for row in rows if row[name] is None]


def heads(sort: str) -> list[Row]:
    """Of the columns that a table of finished SAEs can be ordered by."""
    names = {"ev": "EV", "l0": "L0", "ce_recovered": "CE recovered", "dead": "Dead"}
    found = []
    for name, label in names.items():
        first = f"-{name}" if name in ("ev", "ce_recovered") else name  # the better end
        other = name if first != name else f"-{name}"
        order = {name: "ascending", f"-{name}": "descending"}.get(sort, "")
        found.append({"label": label, "to": other if sort == first else first, "order": order})
    return found


def tradeoff(rows: list[Row]) -> SafeString | str:
    """Of the finished SAEs, where there are several; "" else."""
    dots = [
        Dot(str(row["number"] + 1), row["number"], row["l0"], row["ev"])
        for row in rows
        if row["ready"] and row["l0"] is not None and row["ev"] is not None
    ]
    title = "Explained variance against active latents per token"
    return tradeoff_chart(dots, title=title, cost="L0", gain="EV") if len(dots) > 1 else ""
