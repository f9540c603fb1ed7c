"""The SAEs of a training beside each other: what tells them apart, how good each is, and which is best in what."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.utils.safestring import SafeString

from mistudio.figures.tradeoff import Dot, tradeoff_chart
from mistudio.formats import fixed, percent
from mistudio.models import Sae, Training
from mistudio.models.plan import differences


@dataclass(frozen=True)
class Column:
    name: str
    label: str
    text: Callable[[float | None], str]
    best: Callable[[list[float]], float] | None


COLUMNS = (
    Column("ev", "EV", partial(fixed, places=3), max),
    Column("l0", "L0", partial(fixed, places=1), None),  # fewer active latents are no merit of their own
    Column("ce_recovered", "CE recovered", partial(fixed, places=3), max),
    Column("dead", "Dead", percent, min),
)
LIVE = ("fvu", "l0", "loss", "dead", "lr", "ce_recovered")
Row = dict[str, Any]


def side_by_side(row: Training, points: list[tuple[int, dict[str, float]]]) -> list[Row]:
    """Each SAE, in the order of the plan. Once it is ready, its figures are those of held-out tokens, else the newest
    of the run; how many latents are dead is of the run in both cases. One that diverged, at the step `diverged`, has no
    figures: nothing is left of what it had."""
    rows = {sae.number: sae for sae in row.saes.all()}
    newest = {name: value for _, values in points for name, value in values.items()}
    diverged = row.result.get("diverged", {})
    found = []
    for n, (member, said) in enumerate(zip(row.members, differences(row.members), strict=True)):
        step = diverged.get(f"line_{n + 1}") if row.ready else newest.get(f"diverged.{n}")
        live = {name: newest.get(f"{name}.{n}") if step is None else None for name in LIVE}
        live["ev"] = None if live["fvu"] is None else 1 - live["fvu"]
        rebuilds = tuple(member["writes"] or member["reads"])
        sae = rows.get(n)
        ready = sae if sae and sae.ready else None
        shown = {**live, **(measured(ready) if ready else {})}
        about = {"number": n, "said": said, "rebuilds": rebuilds, "sae": sae, "ready": ready, "diverged": step}
        found.append({**about, **shown})
    return [{**one, "cells": cells(one, found)} for one in found]


def measured(sae: Sae) -> Row:
    return {"ev": sae.explained_variance, "l0": sae.l0, "ce_recovered": sae.ce_recovered}


def cells(row: Row, rows: list[Row]) -> list[Row]:
    """Of a row of the table, each with what it says and whether it is best among those that rebuild the same: of other
    sites, other things are hard. Where more than half are as good, none stands out."""
    alike = [other for other in rows if other["rebuilds"] == row["rebuilds"]]
    return [
        {
            "label": column.label,
            "text": column.text(row[column.name]),
            "best": column.best and stands_out(row[column.name], [r[column.name] for r in alike], column.best),
        }
        for column in COLUMNS
    ]


def stands_out(value: float | None, among: list[float | None], best: Callable[[list[float]], float]) -> bool:
    known = [one for one in among if one is not None]
    return value is not None and value == best(known) and 2 * known.count(value) <= len(among)


def of_one_kind(rows: list[Row]) -> bool:
    """Do all rebuild the same?"""
    return len({row["rebuilds"] for row in rows}) < 2


def ordered(rows: list[Row], sort: str) -> list[Row]:
    """By a column, "-ev" the largest first; what was not measured comes last. By number where there is no such one."""
    name, down = sort.removeprefix("-"), sort.startswith("-")
    if name not in {column.name for column in COLUMNS}:
        return rows
    known = sorted((row for row in rows if row[name] is not None), key=lambda row: row[name], reverse=down)
    return known + [row for row in rows if row[name] is None]


def heads(sort: str) -> list[Row]:
    """Of the columns that a table of finished SAEs can be ordered by."""
    found = []
    for column in COLUMNS:
        up, down = column.name, f"-{column.name}"
        first, other = (down, up) if column.best is max else (up, down)  # the better end first
        order = {up: "ascending", down: "descending"}.get(sort, "")
        found.append({"label": column.label, "to": other if sort == first else first, "order": order})
    return found


def tradeoff(rows: list[Row]) -> SafeString | str:
    """Of the finished SAEs, where there are several; "" else."""
    dots = [
        Dot(str(row["number"] + 1), row["number"], row["l0"], row["ev"])
        for row in rows
        if row["ready"] and row["l0"] is not None and row["ev"] is not None
    ]
    title = "Explained variance against active latents per token"
    joined = of_one_kind(rows)
    return tradeoff_chart(dots, title=title, cost="L0", gain="EV", joined=joined) if len(dots) > 1 else ""
