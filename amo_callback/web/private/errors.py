"""Errors of the private door into problem details. A bug is logged with its trace, and answered without it."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

from amo_callback.errors import AmoCallbackError
from amo_callback.web.keys import LOG, SETTINGS
from amo_callback.web.private.problems import Code, Problem, problem_of, render

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler


@web.middleware
async def problem_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors as `application/problem+json`."""
    try:
        return await handler(request)
    except AmoCallbackError as error:
        return render(problem_of(error, settings=request.app[SETTINGS]))
    except web.HTTPException as error:
        code = Code.NOT_FOUND if error.status == HTTPStatus.NOT_FOUND else Code.INVALID_REQUEST
        problem = render(Problem(status=error.status, code=code, detail=error.reason))
        if "Allow" in error.headers:
            problem.headers["Allow"] = error.headers["Allow"]
        return problem
    except ConnectionError:
        raise  # the client has gone away in the middle
    except Exception as bug:  # noqa: BLE001 -- because nobody outside may see a trace
        request.app[LOG].error("http.bug", exc_info=bug)
        return render(Problem(status=500, code=Code.INTERNAL_ERROR, detail="A bug of amo-callback: see its log."))
