"""Everything that is asked of a Docker Engine, with errors of ours and deadlines; alone in importing docker-py.

Its calls block: `Engine.call` runs them in threads of their own number, so that a slow engine stalls nothing else.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from toolgym.sandboxes.base import SandboxLost, SandboxUnavailable

T = TypeVar("T")
REQUEST_S = 30.0  # for the engine to answer one request
_THREADS = 16
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("toolgym_docker_threads")  # one for each event loop
_HINT = "is Docker running? `toolgym sandbox doctor` says what is missing"


class Engine:
    """A Docker Engine, found as the docker command finds it (``DOCKER_HOST``, else its socket).

    Connects at first use.
    """

    def __init__(self) -> None:
        self._api: Any = None
        self._pid = 0

    def _connect(self) -> Any:
        _knock(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
        if self._api is not None and self._pid == os.getpid():
            return self._api
        try:
            docker = import_module("docker")
        except ImportError:
            raise SandboxUnavailable("the docker package is not installed: pip install 'toolgym[docker]'") from None
        try:
            client = docker.from_env(timeout=REQUEST_S, max_pool_size=_THREADS)
        except Exception as error:  # docker-py raises several libraries' errors here
            raise SandboxUnavailable(f"no Docker engine: {_first_line(error)}; {_HINT}") from error
        if client.api.base_url.startswith("https"):
            raise SandboxUnavailable(
                "Docker over TLS is not supported (streams cannot be attached): use ssh -L or a socket"
            )
        self._api, self._pid = client.api, os.getpid()
        return self._api

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run one of this object's methods in a thread; it goes on there where the caller is cancelled."""
        try:
            limiter = _limiter.get()
        except LookupError:
            limiter = anyio.CapacityLimiter(_THREADS)
            _limiter.set(limiter)
        return await anyio.to_thread.run_sync(
            partial(function, *args, **kwargs), abandon_on_cancel=True, limiter=limiter
        )

    def request(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call docker-py's low-level method ``method``.

        Raises:
            SandboxUnavailable: no engine answers.
            SandboxLost: it answers with an error, or not in time. ``status`` on it is the HTTP status, where there is
            one.
        """
        api = self._connect()
        with _translated(method):
            return getattr(api, method)(*args, **kwargs)

    def info(self) -> dict[str, Any]:
        """What the engine says of itself."""
        return self.request("info")

    def attach(self, container: str) -> socket.socket:
        """A socket of our own on the container's standard streams."""
        params = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        stream = self.request("attach_socket", container, params=params)
        sock = socket.socket(fileno=os.dup(stream.fileno()))
        # docker-py's view of the connection is a file on a socket on a response: all of them are to be closed.
        response = getattr(stream, "_response", None)
        inner = getattr(stream, "_sock", None)
        stream.close()
        for part in (response, inner):
            if part is not None:
                with contextlib.suppress(ValueError):  # the response flushes what the line above has closed
                    part.close()
        return sock

    def start(
        self, image: str, command: list[str], *, host: dict[str, Any], **config: Any
    ) -> tuple[str, socket.socket]:
        """Create a container, attach to it, start it.

        Whatever fails, nothing is left. Returns its id and its streams.
        """
        host_config = self.request("create_host_config", **host)
        container = self.request("create_container", image, command, host_config=host_config, **config)["Id"]
        sock = None
        try:
            sock = self.attach(container)
            self.request("start", container)
        except BaseException:
            if sock is not None:
                sock.close()
            self.remove(container)
            raise
        return container, sock

    def remove(self, container: str) -> None:
        """Kill and remove a container; fine where it is gone already."""
        try:
            self.request("remove_container", container, force=True, v=True)
        except SandboxLost as error:
            if error.status not in (404, 409):  # no such container; its removal is in progress
                raise

    def containers(self, label: str) -> list[dict[str, Any]]:
        """All containers with a label, running or not."""
        return self.request("containers", all=True, filters={"label": label})

    def events(self, container: str, since: float) -> list[dict[str, Any]]:
        """What happened to a container from a time until now, as far as the engine remembers."""
        stream = self.request(
            "events", since=int(since), until=int(time.time()) + 1, filters={"container": container}, decode=True
        )
        with _translated("events"):
            return list(stream)


@contextlib.contextmanager
def _translated(method: str) -> Iterator[None]:
    """Raise what docker-py raises as errors of ours."""
    errors, requests = import_module("docker.errors"), import_module("requests.exceptions")
    try:
        yield
    except errors.APIError as error:
        lost = SandboxLost(f"Docker, {method}: {error.explanation or error}")
        lost.status = error.status_code
        raise lost from error
    except requests.Timeout as error:
        raise SandboxLost(f"Docker did not answer {method} within {REQUEST_S:.0f} s") from error
    except (errors.DockerException, requests.RequestException, OSError) as error:
        raise SandboxUnavailable(f"the Docker engine does not answer ({_first_line(error)}); {_HINT}") from error


def _knock(host: str) -> None:
    """Raise SandboxUnavailable where nobody listens at a Unix socket: docker-py would leave its socket open."""
    if not host.startswith("unix://"):
        return
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(REQUEST_S)
        try:
            sock.connect(host.removeprefix("unix://"))
        except OSError as error:
            raise SandboxUnavailable(f"no Docker engine answers at {host} ({error.strerror}); {_HINT}") from error


@cache
def _engine(host: str) -> Engine:
    return Engine()


def docker_engine() -> Engine:
    """The engine that the environment names now; one object, with one pool of connections, for a whole process."""
    return _engine(os.environ.get("DOCKER_HOST", ""))


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
