"""The operator's dashboard: what it shows (`Picture`), and its `Pages`, an ASGI application.

`mount_dashboard` joins them, and `/metrics`, to a dispatcher's API.
"""

from edge_runtime.dispatcher.api import Api
from edge_runtime.dispatcher.dashboard.access import Access, operators_only
from edge_runtime.dispatcher.dashboard.pages import MetricsPage, Pages
from edge_runtime.dispatcher.dashboard.picture import Picture
from edge_runtime.dispatcher.front import Front
from edge_runtime.dispatcher.metrics import Meter
from edge_runtime.dispatcher.service import DispatcherService
from edge_runtime.dispatcher.tracing import AttemptSpans, traced

__all__ = ["MetricsPage", "Pages", "Picture", "mount_dashboard"]


def mount_dashboard(
    api: Api, service: DispatcherService, front: Front, access: Access = operators_only
) -> Picture:
    """Serve `/dashboard/` and `/metrics` of a running service from its API, and trace it."""
    meter = Meter(service)
    picture = Picture(service, front, meter)
    service.watchers.append(picture.watch)
    service.watchers.append(AttemptSpans(service.core.state).watch)
    service.interactive.watchers.append(picture.request_ended)
    api.around = traced
    api.on_answer = meter.answered
    api.mount("dashboard", Pages(picture, api.streams, access))
    api.mount("metrics", MetricsPage(meter, access))
    return picture
