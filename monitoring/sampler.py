"""Takes readings of this host and keeps them, in a thread of the web process.

Of the web processes of a host one leads: the one that holds a lock in the data folder. The kernel frees it however the
process ends, and another one takes over. Whatever goes wrong here is logged once and never reaches the site."""

import fcntl
import logging
import os
import socket
import threading
import time
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import IO

from django.db import connection

from monitoring.alerts import Watch, look_around, tidy_alerts
from monitoring.history import COARSER, moment, record, roll_up, tidy
from monitoring.models import Host
from monitoring.probe import Probe
from monitoring.reading import Values
from monitoring.rules import rules

LOOK = 2.0  # seconds between two looks at the lock
TIDY = 60  # seconds
MOST_UNWRITTEN = 300  # readings that wait for a database which is away

log = logging.getLogger(__name__)


class Sampler:
    def __init__(self, seconds: int, folder: Path) -> None:
        self.seconds, self.folder = seconds, folder
        self.name = socket.gethostname()
        self.lock: IO[str] | None = None
        self.probe = Probe(folder)
        self.host: Host | None = None
        self.unwritten: deque[tuple[datetime, Values]] = deque(maxlen=MOST_UNWRITTEN)
        self.watch = Watch()
        self.rolled = self.tidied = 0.0  # the intervals in which it was done last
        self.trouble = ""

    def start(self) -> None:
        threading.Thread(target=self.run, name="monitor", daemon=True).start()

    def run(self) -> None:
        while True:
            time.sleep(self.pause(time.time()))
            self.tick()

    def pause(self, now: float) -> float:
        """Until the next multiple of the interval: ticks neither drift nor are made up for."""
        return self.seconds - now % self.seconds if self.lock else min(LOOK, self.seconds)

    def tick(self) -> None:
        try:
            if self.leads():
                self.sample(time.time())
            self.trouble = ""
        except Exception as error:  # the site goes on, whatever its monitor lacks
            self.host = None  # the row may be what is wrong
            connection.close()
            if str(error) != self.trouble:
                log.warning("The monitor keeps no readings for now: %s", error)
            self.trouble = str(error)

    def leads(self) -> bool:
        if self.lock is None:
            file = (self.folder / f"monitor-{self.name}.lock").open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return False
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            self.lock = file
        return True

    def sample(self, now: float) -> None:
        values = self.probe.read().values
        self.unwritten.append((moment(round(now)), values))
        host = self.known_host()
        record(host, self.unwritten)
        self.unwritten.clear()
        held = rules()
        self.watch.see(self.name, values, held, moment(now))
        if self.rolled != now // COARSER[0]:
            roll_up(host, moment(now))
            look_around(held, moment(now))
            self.rolled = now // COARSER[0]
        if self.tidied != now // TIDY:
            tidy(moment(now))
            tidy_alerts(moment(now))
            self.tidied = now // TIDY

    def known_host(self) -> Host:
        """Its row, with what is known about it now."""
        facts = {
            "gpus": {str(number): name for number, name in self.probe.gpus.names.items()},
            "absent": self.probe.last.absent,
            "seconds": self.seconds,
        }
        if self.host is None or self.host.facts != facts:
            self.host, _ = Host.objects.update_or_create(name=self.name, defaults={"facts": facts})
        return self.host
