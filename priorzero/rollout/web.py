"""One bounded JSON request over HTTP, and what can go wrong with a tool."""

from __future__ import annotations

import ipaddress
import json
import time
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

BUSY = (408, 425, 429)  # statuses below 500 with which a service asks to be tried again
_CHUNK = 1 << 16


class ToolError(RuntimeError):
    """A tool cannot answer."""


class ToolUnavailableError(ToolError):
    """A tool cannot answer now; another attempt may succeed."""


def post_json(url: str, body: bytes, *, timeout: float, max_bytes: int) -> Any:
    """Posts JSON and returns the JSON of the reply.

    Args:
        url: http or https. Requests to this machine pass by any proxy.
        body: the JSON to send.
        timeout: seconds until the whole reply must be there.
        max_bytes: the longest reply that is read.

    Raises:
        ToolUnavailableError: no connection, no reply in time, or a status that asks to try again (5xx, 408, 425, 429).
        ToolError: the request was refused, or the reply is too long or not JSON.
    """
    deadline = time.monotonic() + timeout
    request = Request(url, body, {"Content-Type": "application/json", "Accept": "application/json"})
    try:
        with _opener(url).open(request, timeout=timeout) as response:
            text = _read(response, url, deadline, max_bytes)
    except HTTPError as error:
        with error:
            said = error.read(300).decode(errors="replace").strip()
        kind = ToolUnavailableError if error.code >= 500 or error.code in BUSY else ToolError
        raise kind(f"{url} answered with status {error.code}: {said or error.reason}") from error
    except (URLError, OSError, HTTPException) as error:
        why = error.reason if isinstance(error, URLError) else error or type(error).__name__
        raise ToolUnavailableError(f"{url} cannot be reached ({why}): is the service up?") from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise ToolError(f"{url} answered something that is not JSON: {text[:100]!r}") from error


def _opener(url: str) -> OpenerDirector:
    host = urlsplit(url).hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return build_opener(ProxyHandler({})) if local else build_opener()


def _read(response: HTTPResponse, url: str, deadline: float, max_bytes: int) -> bytes:
    parts, size = [], 0
    while part := response.read1(_CHUNK):
        size += len(part)
        if size > max_bytes:
            raise ToolError(f"{url} answered with more than {max_bytes} bytes: ask for less, or raise max_bytes")
        if time.monotonic() > deadline:
            raise ToolUnavailableError(f"{url} did not answer in time")
        parts.append(part)
    return b"".join(parts)
