"""A server in a thread of the tests."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from fairy2i_runtime.model import Model
from fairy2i_runtime.serve.app import make_app
from fairy2i_runtime.serve.engine import Engine
from fairy2i_runtime.serve.server import Server, listen, url
from fairy2i_runtime.serve.settings import Settings


@dataclass
class Served:
    """A server that runs."""

    url: str
    engine: Engine
    key: str | None
    server: Server

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            **{"base_url": f"{self.url}/v1", "api_key": self.key or "none", "max_retries": 0, "timeout": 120, **options}
        )

    def metric(self, name: str) -> float:
        """A metric by its name and labels as Prometheus reads them; 0 if it is not there yet."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        text = httpx.get(f"{self.url}/metrics", headers=headers).raise_for_status().text
        found = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.M)
        return float(found[0]) if found else 0.0


@contextmanager
def serving(model: Model, *, sampling: Mapping[str, Any] | None = None, **settings: Any) -> Iterator[Served]:
    """Serve a model at a port that is free; greedy unless told otherwise."""
    chosen = Settings(port=0, **settings)
    with listen(chosen) as listening:
        app = make_app(model, chosen, sampling or {})
        ready = threading.Event()
        server = Server(app, chosen, ready.set, log_requests=False)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="server")
        thread.start()
        assert ready.wait(60)
        try:
            yield Served(url(listening), app.state.engine, chosen.key, server)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
