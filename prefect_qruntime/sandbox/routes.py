"""The REST calls of both dialects, apart from the workloads."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from prefect_qruntime.sandbox import catalog, views
from prefect_qruntime.sandbox.api_errors import ApiError, invalid
from prefect_qruntime.sandbox.call import (
    Call,
    Handler,
    endpoint,
    json_response,
    no_content,
    on_api_error,
    on_http_error,
    raw_json,
    read_body,
)
from prefect_qruntime.sandbox.control_http import control_routes
from prefect_qruntime.sandbox.middleware import CLOUD_PREFIX, SandboxMiddleware
from prefect_qruntime.sandbox.request_schema import check
from prefect_qruntime.sandbox.service import Service
from prefect_qruntime.sandbox.state import COMPLETED, FAILED
from prefect_qruntime.sandbox.stream import stream_job
from prefect_qruntime.sandbox.views import LEGACY
from prefect_qruntime.sandbox.workloads import list_workloads

# --- jobs


def get_job(call: Call) -> Response:
    """Answer `GET /jobs/{id}`."""
    job = call.service.job(call.user, call.instance, call.id)
    shown = not call.flag("exclude_params", False)
    return json_response(views.job_view(job, call.dialect, call.version, call.now, params=shown))


def create_job(call: Call) -> Response:
    """Answer `POST /jobs`."""
    job = call.service.create_job(call.user, call.instance, call.dialect, call.body, call.caller)
    answer: dict[str, object] = {"id": job.id, "backend": job.backend}
    if job.session_id is not None:
        answer["session_id"] = job.session_id
    if job.private:
        answer["private"] = True
    if "calibration_id" in call.body:
        answer["calibration_id"] = job.calibration_id
    return json_response(answer)


def list_jobs(call: Call) -> Response:
    """Answer `GET /jobs`."""
    query = call.query
    limit = call.whole("limit", 200, 1, 200, lenient=True)
    offset = call.whole("offset", 0, 0, 2**31 - 1)
    pending = call.flag("pending")
    program, backend, session_id = query.get("program"), query.get("backend"), query.get("session_id")
    after, before = call.moment("created_after"), call.moment("created_before")
    sort = query.get("sort", "DESC")
    if sort not in ("ASC", "DESC"):
        raise invalid("sort must be ASC or DESC.")
    shown = not call.flag("exclude_params", True)
    found = [
        job
        for job in call.service.visible_jobs(call.user, call.instance, query.getlist("tags"), mocks=call.mocks)
        if (pending is None or pending is not job.is_terminal)
        and (program is None or job.program_id == program)
        and (backend is None or job.backend == backend)
        and (session_id is None or job.session_id == session_id)
        and (after is None or job.created >= after)
        and (before is None or job.created <= before)
    ]
    if sort == "DESC":
        found.reverse()
    now = call.now
    page = [
        views.job_view(job, call.dialect, call.version, now, params=shown) for job in found[offset : offset + limit]
    ]
    return json_response({"jobs": page, "count": len(found), "offset": offset, "limit": limit})


def get_results(call: Call) -> Response:
    """Answer `GET /jobs/{id}/results`."""
    job = call.service.job(call.user, call.instance, call.id)
    outcome = job.outcome
    if job.status == FAILED:
        text = outcome.text if outcome is not None and outcome.text else job.reason
        return Response(text, media_type="text/plain")
    if job.status != COMPLETED or outcome is None or outcome.body is None or job.ended is None:
        return no_content()
    if call.now < job.ended + call.service.settings.results_lag:
        return no_content()
    if job.private:
        if job.result_read:  # The only copy is gone; the service says no more than that there is nothing.
            return no_content()
        if call.request.method == "GET":
            job.result_read = True
    return raw_json(outcome.body)


def cancel_job(call: Call) -> Response:
    """Answer `POST /jobs/{id}/cancel`."""
    call.service.cancel_job(call.service.job(call.user, call.instance, call.id))
    return no_content()


def delete_job(call: Call) -> Response:
    """Answer `DELETE /jobs/{id}`."""
    call.service.delete_job(call.service.job(call.user, call.instance, call.id))
    return no_content()


def get_logs(call: Call) -> Response:
    """Answer `GET /jobs/{id}/logs`."""
    text = views.logs_text(call.service.job(call.user, call.instance, call.id))
    if text is None:
        raise ApiError(404, "not_found", "The job has no logs yet.")
    return Response(text, media_type="text/plain")


def get_metrics(call: Call) -> Response:
    """Answer `GET /jobs/{id}/metrics`."""
    job = call.service.job(call.user, call.instance, call.id)
    return json_response(views.metrics_view(job, call.dialect, call.version, call.now))


def put_tags(call: Call) -> Response:
    """Answer `PUT /jobs/{id}/tags`."""
    job = call.service.job(call.user, call.instance, call.id)
    check("ReplaceTagsRequest", "body", call.body)
    call.service.replace_tags(job, call.body["tags"])
    return no_content()


def list_tags(call: Call) -> Response:
    """Answer `GET /tags`."""
    if call.query.get("type") != "job":
        raise invalid("type must be job.")
    search = call.query.get("search", "")
    if not 3 <= len(search) <= 100:
        raise invalid("search must have 3 to 100 characters.")
    return json_response({"tags": call.service.tags_like(call.user, call.instance, search)})


# --- sessions


def create_session(call: Call) -> Response:
    """Answer `POST /sessions`."""
    session = call.service.open_session(call.user, call.instance, call.body)
    return json_response(views.session_view(session, call.now))


def get_session(call: Call) -> Response:
    """Answer `GET /sessions/{id}`."""
    session = call.service.session(call.user, call.instance, call.id)
    return json_response(views.session_view(session, call.now))


def patch_session(call: Call) -> Response:
    """Answer `PATCH /sessions/{id}`."""
    session = call.service.session(call.user, call.instance, call.id)
    check("UpdateSessionRequest", "body", call.body)
    if not call.body["accepting_jobs"]:
        call.service.sessions.stop_accepting(session)
    elif session.state == "closed":
        raise ApiError(400, 1217, "The session is closed.", "Open a new session.")
    else:
        call.service.sessions.accept_again(session)
    return no_content()


def close_session(call: Call) -> Response:
    """Answer `DELETE /sessions/{id}/close`; in the legacy dialect queued jobs fail, else they are cancelled."""
    session = call.service.session(call.user, call.instance, call.id)
    call.service.sessions.close(session, fail=call.dialect == LEGACY)
    return no_content()


# --- backends, instance


def list_backends(call: Call) -> Response:
    """Answer `GET /backends`: names in the legacy dialect and the oldest version, objects since."""
    service = call.service
    if call.dialect == LEGACY or call.version < views.OBJECTS_SINCE:
        return json_response({"devices": service.catalog.names()})
    waits = "wait_time_seconds" in call.query.get("fields", "").split(",")
    settings = service.settings
    devices = service.catalog.devices(waits, settings.queue_time, settings.run_time, mocks=call.mocks)
    return json_response({"devices": devices})


def backend_status(call: Call) -> Response:
    """Answer `GET /backends/{id}/status`."""
    return json_response(catalog.status_view(call.service.catalog.get(call.id)))


def backend_configuration(call: Call) -> Response:
    """Answer `GET /backends/{id}/configuration`."""
    return raw_json(catalog.configuration_json(_calibrated(call)))


def backend_properties(call: Call) -> Response:
    """Answer `GET /backends/{id}/properties`."""
    call.moment("updated_before")
    return raw_json(catalog.properties_json(_calibrated(call)))


def _calibrated(call: Call) -> catalog.Backend:
    """Return the backend of the path if it has the calibration of the query."""
    backend = call.service.catalog.get(call.id)
    call.service.catalog.calibration(backend, call.query.get("calibration_id"))
    return backend


def backend_defaults(call: Call) -> Response:
    """Answer `GET /backends/{id}/defaults`."""
    return raw_json(catalog.defaults_json(call.service.catalog.get(call.id)))


def get_instance(call: Call) -> Response:
    """Answer `GET /instance`."""
    answer: dict[str, object] = {
        "backends": call.service.catalog.names(),
        "plan_id": call.service.accounts.plan_id,
    }
    limit = call.instance.limit
    if limit is not None:
        answer["instance_limit"] = limit
        answer["instance_limit_seconds"] = answer["usage_allocation_seconds"] = f"{limit:g}"
    return json_response(answer)


def get_configuration(call: Call) -> Response:
    """Answer `GET /instances/configuration`."""
    limit = call.instance.limit
    return json_response({} if limit is None else {"instance_limit": limit})


def put_configuration(call: Call) -> Response:
    """Answer `PUT /instances/configuration`; only for the first user of the instance."""
    check("InstanceConfigurationUpdate", "body", call.body)
    if call.user.id != call.instance.admin_id:
        raise ApiError(403, 1200, "Only an administrator of the instance may do this.")
    limit = call.body.get("instance_limit")
    if limit is not None and limit < call.instance.consumed:
        raise ApiError(409, "conflict", "More than this limit has been used already.")
    call.instance.limit = limit
    call.service.runner.wake()
    return no_content()


def get_usage(call: Call) -> Response:
    """Answer `GET /instances/usage`."""
    return json_response(call.service.accounts.usage_view(call.instance))


# The calls that clients make most come first: routes are tried in order.
_ROUTES: tuple[tuple[str, str, Handler, bool], ...] = (
    ("GET", "/jobs/{id}", get_job, False),
    ("GET", "/jobs", list_jobs, False),
    ("POST", "/jobs", create_job, True),
    ("GET", "/jobs/{id}/results", get_results, False),
    ("DELETE", "/jobs/{id}", delete_job, False),
    ("POST", "/jobs/{id}/cancel", cancel_job, False),
    ("GET", "/jobs/{id}/logs", get_logs, False),
    ("GET", "/jobs/{id}/metrics", get_metrics, False),
    ("PUT", "/jobs/{id}/tags", put_tags, True),
    ("GET", "/tags", list_tags, False),
    ("POST", "/sessions", create_session, True),
    ("GET", "/sessions/{id}", get_session, False),
    ("PATCH", "/sessions/{id}", patch_session, True),
    ("DELETE", "/sessions/{id}/close", close_session, False),
    ("GET", "/backends", list_backends, False),
    ("GET", "/backends/{id}/status", backend_status, False),
    ("GET", "/backends/{id}/configuration", backend_configuration, False),
    ("GET", "/backends/{id}/properties", backend_properties, False),
    ("GET", "/backends/{id}/defaults", backend_defaults, False),
    ("GET", "/instance", get_instance, False),
    ("GET", "/instances/configuration", get_configuration, False),
    ("PUT", "/instances/configuration", put_configuration, True),
    ("GET", "/instances/usage", get_usage, False),
    ("GET", "/workloads", list_workloads, False),
)


def build_app(service: Service) -> Starlette:
    """Build the app: IAM, both dialects, the websocket, the control calls and the middleware."""
    routes: list[Route | WebSocketRoute] = []
    for prefix in (CLOUD_PREFIX, ""):
        for method, path, handler, body in _ROUTES:
            routes.append(Route(prefix + path, endpoint(service, handler, body=body), methods=[method]))
        routes.append(WebSocketRoute(f"{prefix}/stream/jobs/{{id}}", stream_job(service)))
    routes.append(Route(f"{CLOUD_PREFIX}/versions", _versions, methods=["GET"]))
    routes.append(Route("/identity/token", _token(service), methods=["POST"]))
    routes.extend(control_routes(service))
    return Starlette(
        routes=routes,
        middleware=[Middleware(SandboxMiddleware, service=service)],
        exception_handlers={ApiError: on_api_error, HTTPException: on_http_error},
    )


async def _versions(request: Request) -> Response:
    return json_response({"versions": views.VERSIONS})


def _token(service: Service) -> Callable[[Request], object]:
    async def issue(request: Request) -> Response:
        body = await read_body(request, 65536)
        form = parse_qs(body.decode("utf-8", "replace"))
        status, answer = service.accounts.issue_token(form)
        return json_response(answer, status)

    return issue
