import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, require


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def env(request, tmp_path):
    """Settings of a fresh, empty database."""
    env = {**os.environ, "MISTUDIO_DATA": str(tmp_path), "PYTHONPATH": str(ROOT)}
    env.pop("DATABASE_URL", None)
    if request.param == "sqlite":
        yield env
        return
    url = request.getfixturevalue("postgres_url")
    require("postgres", shutil.which("psql") is not None, "psql is not installed")
    name = f"mistudio_race_{os.getpid()}"
    psql(url, f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name}")
    env["DATABASE_URL"] = f"{url.rpartition('/')[0]}/{name}"
    yield env
    psql(url, f"DROP DATABASE {name} WITH (FORCE)")


def psql(url, *statements):
    commands = [part for statement in statements for part in ("-c", statement)]
    subprocess.run(["psql", url, "-q", *commands], check=True, capture_output=True)


def test_of_many_at_once_one_claims_one_ends_and_one_makes_each_job(env):
    command = [sys.executable, "-m", "tests.jobs.race"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for what in ("claim", "move", "next"):
        winners = sorted(key for got in found[what]["got"] for key in got)
        assert winners == sorted(found[what]["keys"]), f"{what}: each job has exactly one winner"
        assert len(found[what]["events"]) == len(winners), f"{what}: who lost leaves no event"
    assert found["next"]["events"] == found["next"]["order"], (
        "however many take jobs at once, they start in their order"
    )
    made = found["submit"]
    assert len({tuple(got) for got in made["got"]}) == 1, "everybody is given the same jobs"
    assert made["made"] == len(made["keys"])
