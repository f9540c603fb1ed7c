import contextlib
import json
import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from monitoring.probe import Probe
from monitoring.reading import Reading, series_of
from monitoring.sampler import Sampler


class Command(BaseCommand):
    help = "Print what is read of this host now, until Ctrl-C."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--once", action="store_true", help="one reading")
        parser.add_argument("--keep", action="store_true", help="instead, be the monitor of a host that runs no site")
        parser.add_argument("--json", action="store_true", help="print each as a JSON document on a line of its own")

    def handle(self, *args: Any, **options: Any) -> None:
        seconds = settings.MONITOR_SECONDS or 2
        if options["keep"]:
            with contextlib.suppress(KeyboardInterrupt):
                Sampler(seconds, settings.MISTUDIO_DATA).run()
            return
        probe = Probe(settings.MISTUDIO_DATA)
        probe.read()  # rates are of what happens from here on
        if options["once"]:
            time.sleep(1)
            self.show(probe.read(), options["json"])
            return
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(seconds)
                self.show(probe.read(), options["json"])

    def show(self, reading: Reading, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps({"values": reading.values, "absent": reading.absent}))
        else:
            self.stdout.write("\n".join([*lines(reading), ""]))
        self.stdout.flush()


def lines(reading: Reading) -> list[str]:
    width = max(map(len, [*reading.values, *reading.absent]))
    known = [f"{name:{width}} {value:>20,} {unit(name)}".rstrip() for name, value in reading.values.items()]
    return known + [f"{name:{width}} not read: {why}" for name, why in reading.absent.items()]


def unit(name: str) -> str:
    series = series_of(name)
    return series.unit if series else ""
