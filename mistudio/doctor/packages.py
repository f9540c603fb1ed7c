import importlib.metadata
import platform
import tomllib
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from jobs.doctor import examines

INSTALL = "Run in the folder of miStudio, with the Python that runs it: pip install --editable ."


@examines("packages")
def packages() -> Iterator[CheckMessage]:
    """Against pyproject.toml of the code that runs: what was installed may be of an earlier one."""
    project = tomllib.loads((settings.ROOT / "pyproject.toml").read_text())["project"]
    if not SpecifierSet(project["requires-python"]).contains(version := platform.python_version()):
        said = f"This is Python {version}; miStudio needs {project['requires-python']}."
        yield Error(said, hint="Make the virtual environment anew with such a Python.")
    needed = [Requirement(line) for line in project["dependencies"]]
    wrong = [why for requirement in needed if (why := wrong_with(requirement))]
    yield from (Error(why, hint=INSTALL) for why in wrong)
    if not wrong:
        yield Info(f"Python {version}, and all {len(needed)} packages as pyproject.toml wants them.")
    yield from optional(project["optional-dependencies"])


def optional(extras: dict[str, Any]) -> Iterator[CheckMessage]:
    for line in extras["fast"]:
        if why := wrong_with(Requirement(line)):
            said = (
                f"{why} Encoders that choose the largest pre-activations are slower on the CPU, with the same results."
            )
            yield Warning(said, hint="Run in the folder of miStudio: pip install --editable '.[fast]'")


def wrong_with(requirement: Requirement) -> str:
    """ "" where nothing is."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"The package {requirement.name} is not installed."
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"The package {requirement.name} is {version}, but miStudio needs {requirement.specifier}."
