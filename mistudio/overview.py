"""Several hosts beside each other: what each does now."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from django.utils import timezone

from mistudio.formats import NONE, binary, percent
from mistudio.monitored import is_late
from monitoring.history import newest
from monitoring.models import Alert, Host
from monitoring.reading import Values


def overview(hosts: Sequence[Host]) -> list[dict[str, Any]]:
    now = timezone.now()
    read = newest(now)
    alerts = Counter(Alert.objects.loud().values_list("host", flat=True))
    rows = []
    for host in hosts:
        sample = read.get(host.pk)
        late = sample is None or is_late(sample.at, host, now)
        values = {} if sample is None or late else sample.mean
        rows.append(
            {"host": host, "at": sample and sample.at, "late": late, "alerts": alerts[host.name], **figures(values)}
        )
    return rows


def figures(values: Values) -> dict[str, str]:
    used, total = values.get("memory.used"), values.get("memory.total")
    full = [value for name, value in values.items() if name.startswith("disk./") and name.endswith(".used")]
    free = [value for name, value in values.items() if name.startswith("disk./") and name.endswith(".free")]
    gpus = [value for name, value in values.items() if name.startswith("gpu.") and name.endswith(".utilization")]
    cpu = values.get("cpu.percent")
    return {
        "cpu": NONE if cpu is None else percent(cpu / 100),
        "memory": percent(used / total) if used is not None and total else NONE,
        "memory_of": binary(total) if total else "",
        "disk": percent(full[0] / (full[0] + free[0])) if full and free and full[0] + free[0] else NONE,
        "disk_free": binary(free[0]) if free else "",
        "gpus": f"{sum(value > 0 for value in gpus)} of {len(gpus)}" if gpus else NONE,
    }
