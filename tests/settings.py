"""The settings of the tests: those of the site, on a data folder of their own that ends with the test process.

The database is a file in it under its usual name, so that processes which a test starts, told nothing but the folder,
share it with the test. With xdist every worker has its own folder. With DATABASE_URL the tests run on that server."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

FOLDER = Path(tempfile.mkdtemp(prefix="mistudio-tests-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)

os.environ |= {
    "MISTUDIO_DATA": str(FOLDER),
    "MISTUDIO_TEST_DATABASE": str(FOLDER / "mistudio.sqlite3"),
    "MISTUDIO_SECRET_KEY": "only for tests, of no value to anybody at all",
    "OMP_NUM_THREADS": "1",  # the models are tiny, and tests run beside each other
    "MISTUDIO_STOP_GRACE_SECONDS": os.environ.get("MISTUDIO_STOP_GRACE_SECONDS", "2"),
}
os.environ.pop("REDIS_URL", None)

from mistudio.settings import *  # noqa: E402, F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
