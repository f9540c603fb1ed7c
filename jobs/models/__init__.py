from jobs.models.history import JobEvent, Metric, Progress
from jobs.models.job import MOVES, Job, State
from jobs.models.live_event import LiveEvent
from jobs.models.worker import Worker

__all__ = ["MOVES", "Job", "JobEvent", "LiveEvent", "Metric", "Progress", "State", "Worker"]
