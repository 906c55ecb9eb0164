"""Listen, answer, and end when a signal asks for it."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from copy import deepcopy
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.config import LOGGING_CONFIG

from fairy2i_runtime.errors import OptionError
from fairy2i_runtime.serve.settings import KEY_VARIABLE, Settings

_IDLE_SECONDS = 75  # longer than proxies keep a connection (nginx: 60), so that none is closed under a request
_LAST_SECONDS = 5  # for what is left of answers that were ended
_REASONS = {
    errno.EADDRINUSE: "is in use by another program: give another one with --port (0 takes any that is free)",
    errno.EACCES: "may not be used by this user (ports below 1024 are the system's): give another one with --port",
    errno.EADDRNOTAVAIL: "is no address of this machine: give another one with --host",
}


def listen(settings: Settings) -> socket.socket:
    """A socket at the server's address, to which nobody can connect yet.

    Raises:
        OptionError: if there is no such address, the port is taken, or others could connect and there is no key.
    """
    where = f"port {settings.port} of {settings.host!r}"
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise OptionError(f"{where}: there is no such address ({error}): give another one with --host") from None
    family, kind, protocol, _, address = found[0]
    if settings.key is None and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise OptionError(
            f"{settings.host!r} can be reached from other machines, and there is no key: whoever finds it could use the model. "
            f"Put a key into the environment variable {KEY_VARIABLE}, or listen on 127.0.0.1"
        )
    opened = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the last server's connections may still linger
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise OptionError(f"{where} {_REASONS.get(error.errno or 0, f'cannot be used: {error.strerror}')}") from None
    return opened


def url(listening: socket.socket) -> str:
    """The address of a socket as a browser wants it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """A server that says when it is ready, and that its engine begins nothing more once it ends.

    After a signal the answers that are being written have some seconds to end; a second one ends them at once.
    """

    def __init__(
        self,
        app: Starlette,
        settings: Settings,
        on_ready: Callable[[], object],
        *,
        log_requests: bool,
        first_of: Callable[[int], int] = int,
    ) -> None:
        """``first_of``: the signal to heed when Python calls a handler, of several that came at once."""
        self._first_of = first_of
        self._engine, self._on_ready, self._grace = app.state.engine, on_ready, settings.grace
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                log_config=_log_config(log_requests),
                access_log=log_requests,
                timeout_keep_alive=_IDLE_SECONDS,
                timeout_graceful_shutdown=round(settings.grace) + _LAST_SECONDS,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.draining = True
        end = asyncio.get_running_loop().call_later(self._grace, self._engine.stop)
        await super().shutdown(sockets)
        end.cancel()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            with super().capture_signals():
                yield
            return
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        with super().capture_signals():  # SIGINT and SIGTERM, which are raised again at the end
            for number, handler in before.items():  # nohup has SIGHUP ignored, a shell SIGINT for what it runs beside itself
                signal.signal(number, signal.SIG_IGN if handler is signal.SIG_IGN else self.handle_exit)
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again = self.should_exit
        super().handle_exit(self._first_of(sig), frame)
        del self._captured_signals[1:]  # they are raised again, the last one first: how it ends is said by the first
        self.force_exit = False  # it would leave answers without an end
        if again and self._loop is not None:
            self._loop.call_soon_threadsafe(self._engine.stop)


def _log_config(log_requests: bool) -> dict[str, Any]:
    """Tracebacks of bugs, and a line for every request if asked for; to standard error."""
    config = deepcopy(LOGGING_CONFIG)
    config["handlers"]["access"]["stream"] = "ext://sys.stderr"
    config["loggers"]["uvicorn.error"]["level"] = config["loggers"]["uvicorn"]["level"] = "ERROR"
    config["loggers"]["uvicorn.access"]["level"] = "INFO" if log_requests else "ERROR"
    return config
