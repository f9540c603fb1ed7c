from jobs.models.history import JobEvent, Metric, Progress
from jobs.models.job import MOVES, Job, State
from jobs.models.live_event import LiveEvent
from jobs.models.queue_pause import QueuePause
from jobs.models.schedule import Every, Schedule
from jobs.models.worker import Worker

__all__ = [
    "MOVES",
    "Every",
    "Job",
    "JobEvent",
    "LiveEvent",
    "Metric",
    "Progress",
    "QueuePause",
    "Schedule",
    "State",
    "Worker",
]
