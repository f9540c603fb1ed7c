"""Runs a kind again and again, and kills it at each change that it makes to the disk: first at the first, then at the
second. After each the next attempt runs to its end. Prints what was there after both, as JSON.

python -m tests.kill_points KIND PARAMS FOLDER
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from jobs.context import Context

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")


def run(kind: Any, params: dict[str, Any], folder: Path, kill_at: int = 0) -> bool:
    """In a process of its own. Did it come to its end?"""
    pid = os.fork()
    if not pid:
        if kill_at:
            sys.addaudithook(Killer(folder, kill_at).hear)
        kind.run(kind.Params(**params), Context(1, 1, kind.STAGES))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or status == 0, f"it failed after {kill_at} changes"
    return status == 0


class Killer:
    def __init__(self, folder: Path, left: int) -> None:
        self.folder, self.left = str(folder), left

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(args[0]).startswith(self.folder):
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)


def there(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main(name: str, given: str, place: str) -> None:
    kind, params, folder = import_module(f"jobs.kinds.{name}"), json.loads(given), Path(place)
    import jobs.ml.formats.assemble
    import jobs.ml.formats.certify
    import jobs.ml.saelens  # noqa: F401  once, before all forks

    folder.mkdir(parents=True)
    run(kind, params, folder)
    whole, found, done = there(folder), [], False
    while not done:
        shutil.rmtree(folder)
        folder.mkdir()
        done = run(kind, params, folder, kill_at=len(found) + 1)
        torn = there(folder)
        run(kind, params, folder)
        found.append({"killed": torn, "after": there(folder)})
    sys.stdout.write("\n" + json.dumps({"whole": whole, "found": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
