import socket
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

import psutil
from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning
from django.http.request import validate_host

from jobs import processes
from jobs.doctor import examines
from jobs.studio import answers, running_studio

LOCAL = {"localhost", "127.0.0.1", "[::1]"}


@examines("site")
def site() -> Iterator[CheckMessage]:
    said = running_studio(settings.MISTUDIO_DATA)
    pid = said.get("pid", 0)
    if "studio" not in processes.command_line(pid):  # the file outlives its process; only its lock counts
        yield of_port(settings.MISTUDIO_PORT)
        yield from of_settings([])
        return
    if answers(f"{said['url']}healthz"):
        yield Info(f"Runs at {said['url']} (process {pid}).")
    else:
        hint = f"Stop it and start it again: kill {pid}, and if it stays, kill -9 {pid}; jobs go on where they were."
        yield Error(f"Process {pid} holds the data folder, but {said['url']} does not answer.", hint=hint)
    yield from of_settings(public_addresses(pid))


def of_port(port: int) -> CheckMessage:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            said = f"No site runs on this machine, and port {port} cannot be had: {error.strerror}."
            return Warning(said, hint="The next free port will be used; set MISTUDIO_PORT to have a certain one.")
    return Info(f"No site runs on this machine; port {port} is free. Start it: mistudio studio")


def public_addresses(pid: int) -> list[str]:
    """On which it listens, that other machines may reach; none where we may not look."""
    try:
        found = psutil.Process(pid).net_connections("inet")
    except psutil.Error:
        return []
    listens = [one.laddr for one in found if one.status == psutil.CONN_LISTEN]
    return [f"{at.ip}:{at.port}" for at in listens if not ip_address(at.ip).is_loopback]


def of_settings(public: list[str]) -> Iterator[CheckMessage]:
    """What is wrong in combination. public: the addresses that others may reach."""
    names = [name for name in settings.ALLOWED_HOSTS if name not in LOCAL]
    found = [*of_debug(bool(public or names)), *of_bind(public, names), *of_origins()]
    yield from found
    if not found:
        yield Info(f"Answers to {', '.join(settings.ALLOWED_HOSTS)}; MISTUDIO_DEBUG is off.")


def of_debug(reachable: bool) -> Iterator[CheckMessage]:
    if settings.DEBUG:
        said = "MISTUDIO_DEBUG is on: a fault shows code and settings to whoever caused it."
        yield (Error if reachable else Warning)(said, hint="Set MISTUDIO_DEBUG=0.")


def of_bind(public: list[str], names: list[str]) -> Iterator[CheckMessage]:
    if public and not names:
        said = f"It listens on {', '.join(public)}, but whoever asks by another name than localhost is refused (400)."
        yield Warning(said, hint="Set MISTUDIO_ALLOWED_HOSTS to the names under which people reach it.")
    if "*" in names:
        said = "MISTUDIO_ALLOWED_HOSTS is *: others can make pages with links to a site of theirs."
        yield Warning(said, hint="Give the names under which people reach it.")
    if public and not settings.SECURE_PROXY_SSL_HEADER:
        said = f"On {', '.join(public)} passwords and sessions cross the network unencrypted."
        hint = "Listen on 127.0.0.1 behind a proxy that ends TLS, and set MISTUDIO_BEHIND_TLS=1."
        yield Warning(said, hint=hint)


def of_origins() -> Iterator[CheckMessage]:
    for origin in settings.CSRF_TRUSTED_ORIGINS:
        host = urlsplit(origin).hostname or ""
        if "*" not in host and not validate_host(host, settings.ALLOWED_HOSTS):
            said = f"MISTUDIO_TRUSTED_ORIGINS has {origin}, but under this name the site refuses everyone (400)."
            yield Error(said, hint=f"Add {host} to MISTUDIO_ALLOWED_HOSTS.")
        if origin.startswith("https:") and not settings.SECURE_PROXY_SSL_HEADER:
            said = f"{origin} has TLS, but cookies are sent without it, too."
            yield Warning(said, hint="Set MISTUDIO_BEHIND_TLS=1.")
