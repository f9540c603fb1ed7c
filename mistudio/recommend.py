"""Which language model, precision and batch to take for a purpose: by what was measured here, with the reasons.

The rule: the largest model whose measured speed reads the wanted tokens within the wanted time; of its precisions
the most exact that does; of its batches the fastest. A pure function of its arguments."""

from dataclasses import dataclass, field

from mistudio.measurements import Observation, spread
from mistudio.memory import Need
from mistudio.models.language_model import AUTO, Precision

PURPOSES = {  # name → words, and the measurements that speak of it, the best first
    "collect": ("collect activations", ("collect", "forward")),
    "train": ("train an SAE", ("train", "forward")),
    "scan": ("scan features", ("scan", "forward")),
    "steer": ("steer", ("forward",)),
}
EXACTNESS = [precision.value for precision in Precision]


@dataclass(frozen=True)
class Candidate:
    """A language model, with what is known of it."""

    key: int
    name: str
    n_parameters: int
    causal: bool
    refusal: str  # why it cannot be used at all
    needs: list[Need]
    seen: list[Observation]


@dataclass(frozen=True)
class Option:
    key: int
    name: str
    n_parameters: int
    dtype: str
    rows: int | None
    device: str
    tokens_per_second: float
    low: float
    high: float
    n: int  # observations behind the speed
    seconds: float  # for the wanted tokens
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Excluded:
    key: int
    name: str
    dtype: str  # "" for all
    why: str


@dataclass(frozen=True)
class Recommendation:
    best: Option | None
    others: list[Option]
    excluded: list[Excluded]
    unmeasured: list[Excluded]  # would fit by the estimate, but nobody has measured them


def recommend(
    purpose: str, candidates: list[Candidate], devices: list[str], tokens: int, seconds: float
) -> Recommendation:
    """devices: those of this machine, as measurements name them; empty: whatever was measured counts."""
    options, excluded, unmeasured = [], [], []
    for candidate in candidates:
        if why := unfit(purpose, candidate):
            excluded.append(Excluded(candidate.key, candidate.name, "", why))
            continue
        for need in candidate.needs:
            if why := impossible(purpose, candidate, need):
                excluded.append(Excluded(candidate.key, candidate.name, need.dtype, why))
            elif option := measured(purpose, candidate, need.dtype, devices, tokens):
                options.append(option)
            else:
                why = "Not measured on this machine." if candidate.seen else "Not measured."
                said = " ".join([why, *unsettled(candidate)])
                unmeasured.append(Excluded(candidate.key, candidate.name, need.dtype, said))
    options.sort(key=lambda option: rank(option, seconds))
    best = explained(options[0], options, tokens, seconds) if options else None
    return Recommendation(best, options[1:], excluded, unmeasured)


def unfit(purpose: str, candidate: Candidate) -> str:
    if candidate.refusal:
        return candidate.refusal
    if purpose == "steer" and not candidate.causal:
        return "It does not predict the next token: there is no text to steer."
    return ""


def impossible(purpose: str, candidate: Candidate, need: Need) -> str:
    if need.fits and not need.somewhere:
        return "Its weights do not fit into the memory that is free now."
    tried = [one for one in candidate.seen if one.dtype == need.dtype]
    jobs = {one.job for one in tried}
    failed = {one.job for one in tried if one.error}
    if failed and 2 * len(failed) >= len(jobs):
        codes = sorted({one.error for one in tried if one.error})
        return f"Failed {len(failed)} of {len(jobs)} times: {', '.join(codes)}."
    if any(not one.finite for one in tried):
        return "Its activations were not finite numbers."
    return ""


def unsettled(candidate: Candidate) -> list[str]:
    """Failures that count for no precision, because the job had not settled which one is the fastest."""
    failed = [one for one in candidate.seen if one.error and one.dtype == AUTO]
    codes = ", ".join(sorted({one.error for one in failed}))
    return [f"It also failed {times(len(failed))} before a precision was settled: {codes}."] if failed else []


def measured(purpose: str, candidate: Candidate, dtype: str, devices: list[str], tokens: int) -> Option | None:
    """The fastest batch, by measurements of this purpose, else by those of plain forward passes."""
    for kind in PURPOSES[purpose][1]:
        groups: dict[tuple[str, int | None], list[float]] = {}
        for one in candidate.seen:
            told = one.purpose == kind and one.dtype == dtype and one.tokens_per_second
            if told and (not devices or one.device in devices):
                groups.setdefault((one.device, one.rows), []).append(one.tokens_per_second or 0)
        spreads = {key: spread(values) for key, values in groups.items()}
        fastest = max(((known.middle, str(key), key, known) for key, known in spreads.items() if known), default=None)
        if fastest:
            _, _, (device, rows), known = fastest
            reason = f"{dtype} with {rows} rows in a pass: measured in {said(kind)}, {times(known.n)}."
            return Option(
                candidate.key, candidate.name, candidate.n_parameters, dtype, rows, device,
                known.middle, known.low, known.high, known.n, tokens / known.middle, [reason, *unsettled(candidate)],
            )  # fmt: skip
    return None


def rank(option: Option, seconds: float) -> tuple[object, ...]:
    if option.seconds > seconds:
        return (1, option.seconds, option.name, EXACTNESS.index(option.dtype))
    return (0, -option.n_parameters, option.name, EXACTNESS.index(option.dtype))


def explained(best: Option, options: list[Option], tokens: int, seconds: float) -> Option:
    in_time = [option for option in options if option.seconds <= seconds]
    models = {option.key for option in in_time}
    if not in_time:
        reason = f"None of the measured ones reads {tokens:,} tokens in the time; this one is the fastest."
    elif len(models) == 1:
        reason = f"The only model measured that reads {tokens:,} tokens in the time."
    else:
        reason = f"The largest of {len(models)} models that read {tokens:,} tokens in the time."
    more = [option for option in in_time if option.key == best.key and option.dtype != best.dtype]
    exact = [f"The most exact of {len(more) + 1} precisions that do."] if more else []
    return Option(**{**best.__dict__, "reasons": [reason, *exact, *best.reasons]})


def said(kind: str) -> str:
    return {"forward": "forward passes", "collect": "caching", "train": "training", "scan": "scans"}[kind]


def times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"
