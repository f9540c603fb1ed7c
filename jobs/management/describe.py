from typing import Any

from jobs.models import Job


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
    return said
