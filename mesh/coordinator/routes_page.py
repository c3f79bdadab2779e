"""Routes: where things are, for programs; the status page, for people.

The page is the files of `page/`, and holds no data: it reads these from /v1, with the token that is put into it. Its scripts and
its style are files of their own, and Content-Security-Policy lets no others run, wherever they come from.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response

from mesh import __version__
from mesh.coordinator.answers import Json
from mesh.coordinator.requests import FrontOf
from mesh.errors import NotFound

__all__ = ["router"]

router = APIRouter(include_in_schema=False, default_response_class=Json)

_OWN = "/v1/namespaces/{namespace}"
_LINKS = ("tasks", "dead-letters", "agents", "capabilities", "queues", "types", "events")
_FOLDER = Path(__file__).with_name("page")
_FILES = {
    "index.html": "text/html",
    "page.js": "text/javascript",
    "draw.js": "text/javascript",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "connect", "img")),
        *(f"{kind} 'none'" for kind in ("base-uri", "form-action", "frame-ancestors", "trusted-types")),
        "require-trusted-types-for 'script'",
    )
)


def _page(name: str) -> Response:
    content = (_FOLDER / name).read_bytes()
    headers = {"content-security-policy": _POLICY, "vary": "accept"}
    return Response(content, media_type=_FILES[name], headers=headers)


@router.get("/")
def root(request: Request, front: FrontOf) -> Response:
    """The status page for who accepts HTML, else where things are."""
    if "text/html" in request.headers.get("accept", ""):
        return _page("index.html")
    namespace = front.settings.namespace
    base = _OWN.format(namespace=namespace)
    links = {name.replace("-", "_"): f"{base}/{name}" for name in _LINKS}
    more = {
        "cluster": "/v1/cluster",
        "health": "/health",
        "metrics": "/metrics",
        "openapi": "/openapi.json",
    }
    body = {"service": "agent-mesh coordinator", "version": __version__, "namespace": namespace}
    return Json({**body, "links": {**links, **more}}, headers={"vary": "accept"})


@router.get("/page/{name}")
def part(name: str) -> Response:
    """The script of the page, its style, its icon."""
    if name not in _FILES:
        raise NotFound(f"There is no {name!r} beside the page.")
    return _page(name)
