import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser

from jobs.management.progress_line import ProgressLine
from jobs.models import State
from jobs.studio import CannotStart, running_studio, studio
from jobs.watch import see_through
from mistudio.demo.pipeline import Demo
from mistudio.management.commands.createadmin import administrator
from mistudio.models import Artifact, Sae, Scan, Team
from mistudio.views.account import links

INTERRUPTED = 130


class Command(BaseCommand):
    help = "Walk the main path on the bundled language model and Python's own documentation, then serve the site."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--port", type=int, help="default: MISTUDIO_PORT, or the next that is free")
        parser.add_argument("--no-serve", action="store_true", help="do the work and end")
        parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON document at the end")

    def handle(self, *args: Any, **options: Any) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end it the same way
        try:
            call_command("migrate", verbosity=0)
            with contextlib.nullcontext("") if options["no_serve"] else self.site(options["port"]) as url:
                self.walk(url, options["as_json"])
        except CannotStart as reason:
            raise CommandError(str(reason)) from reason
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    @contextlib.contextmanager
    def site(self, port: int | None) -> Iterator[str]:
        """Of a studio that runs on this data already, or of one that lives as long as this command."""
        arguments = ["--quiet", *(["--port", str(port)] if port else [])]
        try:
            with studio(*arguments) as url:
                yield url
        except CannotStart:
            if not (running := running_studio(settings.MISTUDIO_DATA)):
                raise
            raise CannotStart(f"miStudio already runs at {running['url']} Stop it, or use it.") from None

    def walk(self, url: str, as_json: bool) -> None:
        started = time.monotonic()
        demo = Demo(
            Team.default(), administrator("admin"), settings.MISTUDIO_DATA / "demo" / "corpus.jsonl", self.finish
        )
        sae, scan = demo.run()
        seconds = time.monotonic() - started
        if as_json:
            self.stdout.write(json.dumps(summary(sae, scan, seconds)))
        else:
            self.stdout.write(f"{sae.width:,} features, {scan.n_alive:,} alive, after {seconds:.0f} s.")
        if url:
            link = url.rstrip("/") + links.path(demo.owner)
            self.stdout.write(f"Open this link; it signs in once, within a day. Ctrl-C stops everything.\n\n  {link}\n")
            self.stdout.flush()
            while True:
                time.sleep(3600)

    def finish(self, artifact: Artifact) -> None:
        """See the artifact's job through, in a worker if there is one. Raises CommandError when it fails."""
        assert artifact.job is not None  # it was just started
        self.stderr.write(f"{artifact.NOUN} {artifact.name}")
        progress = ProgressLine(sys.stderr)
        job = see_through(artifact.job, progress)
        progress.end()
        if job.state != State.SUCCEEDED:
            raise CommandError(f"Job {job.pk} {job.state}: {job.error_message} {job.error_hint}".strip())


def summary(sae: Sae, scan: Scan, seconds: float) -> dict[str, Any]:
    return {
        "training": sae.training_id,
        "sae": sae.pk,
        "scan": scan.pk,
        "fvu": sae.fvu,
        "l0": sae.l0,
        "ce_recovered": sae.ce_recovered,
        "tokens": sae.training.n_tokens if sae.training else None,
        "evaluated_tokens": sae.evaluated_tokens,
        "scanned_tokens": scan.scanned_tokens,
        "features": sae.width,
        "features_alive": scan.n_alive,
        "seconds": round(seconds, 1),
    }
