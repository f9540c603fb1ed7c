from typing import Any

from django.urls import path, re_path

from jobs import consumers

live: Any = consumers.live  # no views, but what Channels routes to
nowhere: Any = consumers.nowhere

websocket_urlpatterns = [path("live/", live), re_path(r"", nowhere)]
