"""All settings, read from the environment. What is wrong there stops the start with a sentence that says what to do."""

import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

from jobs.ml.pace import parse_rate

ROOT = Path(__file__).resolve().parent.parent


def env_int(name: str, default: int, low: int, high: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ImproperlyConfigured(f"{name} is {text!r}: give a whole number from {low} to {high}.")
    return int(text)


def env_bool(name: str, default: bool) -> bool:
    text = (os.environ.get(name) or str(default)).lower()
    if text not in {"true", "1", "yes", "false", "0", "no"}:
        raise ImproperlyConfigured(f"{name} is {text!r}: give 1 or 0.")
    return text in {"true", "1", "yes"}


def env_list(name: str, default: str) -> list[str]:
    return [part.strip() for part in (os.environ.get(name) or default).split(",") if part.strip()]


def env_choice(name: str, *choices: str) -> str:
    """The first is the default."""
    text = os.environ.get(name) or choices[0]
    if text not in choices:
        raise ImproperlyConfigured(f"{name} is {text!r}: give {' or '.join(choices)}.")
    return text


def env_token(name: str) -> str:
    text = os.environ.get(name, "")
    if text and not (len(text) >= 16 and text.isascii() and text.isprintable() and " " not in text):
        raise ImproperlyConfigured(f"{name}: give at least 16 letters and digits, say of: openssl rand -hex 32")
    return text


def env_rate(name: str) -> int | None:
    try:
        return parse_rate(os.environ.get(name, ""))
    except ValueError as error:
        raise ImproperlyConfigured(f"{name} is {os.environ[name]!r}: {error}.") from error


def data_folder() -> Path:
    folder = Path(os.environ.get("MISTUDIO_DATA") or ROOT / "data").expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImproperlyConfigured(f"MISTUDIO_DATA: cannot use {folder}: {error.strerror}.") from error
    return folder


def secret_key(folder: Path) -> str:
    """From the environment, else made once and kept in the data folder, readable by its owner alone."""
    if key := os.environ.get("MISTUDIO_SECRET_KEY"):
        return key
    path = folder / "secret_key"
    try:
        # O_EXCL: of two processes that start at once, one writes the key and both read the same.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(50))
    except FileExistsError:
        pass
    return path.read_text() or secret_key_missing(path)


def secret_key_missing(path: Path) -> str:
    raise ImproperlyConfigured(f"{path} is empty: delete it to have a new key made (everyone must sign in again).")


def database(url: str, folder: Path) -> dict[str, Any]:
    if not url:
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": folder / "mistudio.sqlite3",
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-32000;",
            },
            "TEST": {"NAME": os.environ.get("MISTUDIO_TEST_DATABASE") or None},
        }
    parts = urlsplit(url)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise ImproperlyConfigured("DATABASE_URL: give postgresql://user:password@host:port/name, or leave it unset.")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
        "CONN_HEALTH_CHECKS": True,
    }


MISTUDIO_DATA = data_folder()
MISTUDIO_PORT = env_int("MISTUDIO_PORT", 8000, 1, 65535)
GPU_SLOTS = env_int("MISTUDIO_GPU_SLOTS", 1, 1, 64)
CPU_SLOTS = env_int("MISTUDIO_CPU_SLOTS", 2, 1, 64)
MONITOR_SECONDS = env_int("MISTUDIO_MONITOR_SECONDS", 2, 0, 60)  # between two readings of this host; 0: none
CACHE_QUOTA_BYTES = 10**9 * env_int("MISTUDIO_CACHE_QUOTA_GB", 0, 0, 10**6)  # of each team; 0: as much as fits
STOP_GRACE_SECONDS = env_int("MISTUDIO_STOP_GRACE_SECONDS", 20, 1, 3600)
DOWNLOAD_RATE = env_rate("MISTUDIO_DOWNLOAD_RATE")  # bytes/s from the hub; None: no limit
REDIS_URL = os.environ.get("REDIS_URL", "")
LOG_FORMAT = env_choice("MISTUDIO_LOG_FORMAT", "line", "json")
METRICS_TOKEN = env_token("MISTUDIO_METRICS_TOKEN")  # who sends it may read /metrics; "": nobody
BACKUPS = Path(os.environ.get("MISTUDIO_BACKUPS") or MISTUDIO_DATA / "backups").expanduser().resolve()
UPLOAD_LIMIT = env_int("MISTUDIO_UPLOAD_LIMIT", 64, 1, 100_000) * 2**30  # bytes of a file
UPLOAD_QUOTA = env_int("MISTUDIO_UPLOAD_QUOTA", 128, 1, 1_000_000) * 2**30  # bytes of a team

SECRET_KEY = secret_key(MISTUDIO_DATA)
DEBUG = env_bool("MISTUDIO_DEBUG", False)
ALLOWED_HOSTS = env_list("MISTUDIO_ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
CSRF_TRUSTED_ORIGINS = env_list("MISTUDIO_TRUSTED_ORIGINS", "")
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if env_bool("MISTUDIO_BEHIND_TLS", False) else None
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_PROXY_SSL_HEADER is not None
SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = "mistudio_session", "mistudio_csrf"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "django_htmx",
    "django_q",
    "mistudio",
    "jobs",
    "monitoring",
]
MIDDLEWARE = [
    "jobs.probes.probes",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "mistudio.security.ContentSecurityPolicy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "mistudio.views.errors.explain_wrong_method",
]
ROOT_URLCONF = "mistudio.urls"
ASGI_APPLICATION = "mistudio.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [ROOT / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "builtins": ["mistudio.templatetags.ui"],
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "mistudio.views.shell.shell",
            ],
        },
    }
]

DATABASES = {"default": database(os.environ.get("DATABASE_URL", ""), MISTUDIO_DATA)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_USER_MODEL = "mistudio.User"
TEAM_MODEL = "mistudio.Team"
LOGIN_URL, LOGIN_REDIRECT_URL = "login", "home"
PASSWORD_RESET_TIMEOUT = 24 * 3600
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

LANGUAGE_CODE, TIME_ZONE, USE_TZ, USE_I18N = "en", "UTC", True, False
USE_THOUSAND_SEPARATOR = False

STATIC_URL = "static/"
STATICFILES_DIRS = [ROOT / "static"]
WHITENOISE_USE_FINDERS = True
DATA_UPLOAD_MAX_MEMORY_SIZE = 5 * 2**20  # more than one chunk of an upload
FILE_UPLOAD_HANDLERS = [
    "mistudio.security.SmallFiles",
    "django.core.files.uploadhandler.MemoryFileUploadHandler",
    "django.core.files.uploadhandler.TemporaryFileUploadHandler",
]

# Job queues. django-q2 only carries job ids to a supervisor; the Job row is the truth. A message must never be handed
# out again while its job runs, so `retry` is far beyond `timeout`, and both far beyond any job.
MONTH = 30 * 24 * 3600
Q_QUEUE: dict[str, Any] = {
    "timeout": MONTH,
    "retry": 2 * MONTH,
    "ack_failures": True,
    "max_attempts": 1,
    "recycle": 20,
    "queue_limit": 1,
    "daemonize_workers": False,
    "catch_up": False,
    "save_limit": -1,
    "poll": 0.2,
}
Q_CLUSTER = {
    "name": "cpu",
    "orm": "default",
    "workers": CPU_SLOTS,
    **Q_QUEUE,
    "ALT_CLUSTERS": {"gpu": {**Q_QUEUE, "workers": GPU_SLOTS}, "cpu": {**Q_QUEUE, "workers": CPU_SLOTS}},
}

# A job names what it works on; the domain knows where that is shown.
SUBJECT_URL = "mistudio.models.artifact.subject_url"
# What workers call every few minutes, beside their own cleaning.
SWEEPS = ["mistudio.models.upload.sweep"]
# Rules for alerts, beside the monitor's own.
MONITOR_RULES = ["mistudio.worker_alerts.RULES"]

# Tasks of upkeep: name → a jobs.upkeep.task.Task. Each has a schedule, and each run of it is a job.
UPKEEP = {
    "backup": "mistudio.upkeep.backup.task",
    "lost_jobs": "jobs.upkeep.lost_jobs.task",
    "metrics": "jobs.upkeep.history.metrics",
    "progress": "jobs.upkeep.history.progress",
    "logs": "jobs.upkeep.logs.task",
    "monitor": "mistudio.upkeep.monitor.task",
    "checkpoints": "mistudio.upkeep.checkpoints.task",
    "caches": "mistudio.upkeep.caches.task",
    "orphans": "mistudio.upkeep.orphans.task",
    "missing": "mistudio.upkeep.missing.task",
    "checksums": "mistudio.upkeep.checksums.task",
    "sessions": "mistudio.upkeep.sessions.task",
}

# Secrets of a job's owner for the environment of its process, for kinds that read from the hub.
JOB_SECRETS = "mistudio.models.hub_token.secrets_of"

# Live events. Topic name → the Topic that says who may see it and how it is rendered.
LIVE_TOPICS = {
    "jobs": "jobs.views.job_topic",
    "operations": "jobs.operations.topic",
    "trainings": "mistudio.views.training.topic",
    "home": "mistudio.views.home.topic",
    "shell": "mistudio.views.shell.topic",
    "system": "mistudio.views.monitor.topic",
    "attribution": "mistudio.views.attribution.topic",
    "hosts": "mistudio.views.monitor.hosts_topic",
    "alerts": "mistudio.views.alert.topic",
    "upkeep": "mistudio.views.upkeep.topic",
}
CHANNEL_LAYERS: dict[str, Any] = {
    "default": (
        {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": {"hosts": [REDIS_URL]}}
        if REDIS_URL
        else {"BACKEND": "channels.layers.InMemoryChannelLayer"}
    )
}

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"class": "jobs.log_format.Line", "format": "{asctime} {levelname} {name}: {message}", "style": "{"},
        "json": {"class": "jobs.log_format.JsonLine"},
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": LOG_FORMAT}},
    "loggers": {"django": {"level": "INFO"}},  # without the handlers of its own, which would write in another form
    "root": {"handlers": ["console"], "level": "WARNING"},
}

# The hub's client must not look for a network that jobs did not ask for, nor report use.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# Threads that wait for each other soon sleep: where jobs share the cores, turning in circles took a third of the time.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
