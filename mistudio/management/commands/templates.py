import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, NoReturn

from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management.base import BaseCommand
from django.utils.datastructures import MultiValueDict

from jobs.management.job_command import BAD_INPUT
from mistudio.forms.template import FORMS, TemplateImportForm
from mistudio.models import Team, Template


class Command(BaseCommand):
    help = "List the templates of a team, print them to be imported elsewhere, or import some."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", dest="as_json", help="print what --import takes in")
        parser.add_argument("--noun", choices=sorted(FORMS), help="only those for this")
        parser.add_argument("--import", dest="file", type=Path, help="JSON file with templates")
        parser.add_argument("--team", help="name of the team (default: the first)")

    def handle(self, *args: Any, **options: Any) -> None:
        teams = Team.objects.order_by("pk")
        team = (teams.filter(name=options["team"]) if options["team"] else teams).first()
        if team is None:
            self.refuse("There is no such team.")
        rows = self.imported(team, options["file"]) if options["file"] else list(Template.objects.of_team(team))
        rows = [row for row in rows if options["noun"] in (None, row.noun)]
        if options["as_json"]:
            self.stdout.write(json.dumps([row.document() for row in rows]))
        else:
            self.stdout.write("\n".join(line(row) for row in rows) or "There are no templates.")

    def imported(self, team: Team, file: Path) -> list[Template]:
        try:
            content = file.read_bytes()
        except OSError as error:
            self.refuse(f"{file} cannot be read: {error.strerror}.")
        form = TemplateImportForm({}, MultiValueDict({"file": [SimpleUploadedFile(file.name, content)]}))
        if not form.is_valid():
            self.refuse(" ".join(str(said) for said in form.errors["file"]))
        return form.keep(team, None)

    def refuse(self, text: str) -> NoReturn:
        self.stderr.write(text)
        sys.exit(BAD_INPUT)


def line(row: Template) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in row.values.items())
    return f"{row.noun:<14} {row.name}: {settings}"
