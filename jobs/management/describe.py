from typing import Any

from jobs.models import Job
from jobs.usage import Figure, at_rest, figures_of

MEASURED = {  # name of the figure → what it is called, and how its sum and its levels are told
    "cpu": ("CPU", "{:,.1f} s", "{:.2f} cores"),
    "memory": ("memory", "", "{:,.1f} MiB"),
    "read": ("disk read", "{:,.1f} MiB", "{:,.1f} MiB/s"),
    "written": ("disk written", "{:,.1f} MiB", "{:,.1f} MiB/s"),
    "gpu": ("GPU", "{:,.1f} s", "{:.2f} GPUs"),
    "gpu_memory": ("GPU memory", "", "{:,.1f} MiB"),
}


def describe_job(job: Job, full: bool = False) -> dict[str, Any]:
    """For `--json`."""
    said: dict[str, Any] = {
        "id": job.pk,
        "kind": job.kind,
        "title": job.title,
        "subject": job.subject,
        "state": job.state,
        "percent": job.percent,
        "attempt": job.attempt,
        "priority": job.priority,
        "retry_of": job.retry_of_id,
    }
    for name in ("queued_at", "started_at", "finished_at"):
        at = getattr(job, name)
        said[name] = at.isoformat() if at else None
    if job.error_code:
        said["error"] = {"code": job.error_code, "message": job.error_message, "hint": job.error_hint}
    if full:
        events = [{"at": e.at.isoformat(), "what": e.what, "detail": e.detail} for e in job.events.all()]
        said |= {"params": job.params, "result": job.result, "folder": str(job.folder), "events": events}
        said["usage"] = {name: describe_figure(figure) for name, figure in figures_of(at_rest(job.usage)).items()}
    return said


def describe_figure(figure: Figure) -> dict[str, float]:
    return {name: getattr(figure, name) for name in ("total", "mean", "peak", "seconds")}


def usage_facts(usage: dict[str, dict[str, float]]) -> dict[str, str]:
    """What was used, for people; of what was not measured that."""
    return {label: figure_line(name, usage.get(name)) for name, (label, _, _) in MEASURED.items()}


def figure_line(name: str, figure: dict[str, float] | None) -> str:
    if figure is None:
        return "not measured"
    _, sum_of, level = MEASURED[name]
    size = 2**20 if "MiB" in level else 1
    said = [f"{word} {level.format(figure[word] / size)}" for word in ("mean", "peak")]
    total = [sum_of.format(figure["total"] / size)] if sum_of else []
    return ", ".join([*total, *said]) + f", measured over {figure['seconds']:,.0f} s"
