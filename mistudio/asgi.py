"""The web process: pages over HTTP, live fragments over a websocket."""

import os
import sys

from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from channels.sessions import CookieMiddleware
from django.conf import settings
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mistudio.settings")
pages = get_asgi_application()  # before anything that imports models

from jobs.routing import websocket_urlpatterns  # noqa: E402
from monitoring.sampler import Sampler  # noqa: E402

application = ProtocolTypeRouter(
    {
        "http": pages,
        "websocket": AllowedHostsOriginValidator(CookieMiddleware(URLRouter(websocket_urlpatterns))),
    }
)

# Daphne has its loop before it loads this module. Who only imports the application serves nothing, and has none.
if settings.MONITOR_SECONDS and (loop := sys.modules.get("twisted.internet.reactor")):
    loop.callWhenRunning(Sampler(settings.MONITOR_SECONDS, settings.MISTUDIO_DATA).start)
