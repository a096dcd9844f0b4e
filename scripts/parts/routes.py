"""`POST /ldznet/segment`, where the host's own API is switched on, and behind its authentication."""

from fastapi import Body, HTTPException

BODY = Body(...)
PATH, LIKE = "/ldznet/segment", "/sdapi/v1/img2img"


def add(app, serve):
    """For `on_app_started`: the route, with what the host's own asks of a caller; none where it has no API.

    `serve` makes an answer of a body and raises ValueError where it is not as expected.
    """
    own = next((route for route in app.routes if getattr(route, "path", None) == LIKE), None)
    if own is None:
        return

    def segment(body: dict = BODY):
        try:
            return serve(body)
        except ValueError as error:
            raise HTTPException(status_code=422, detail=str(error)) from error

    app.add_api_route(PATH, segment, methods=["POST"], dependencies=own.dependencies)
