"""The function bodies of our operators that a model carries along: those that a release has written, or none."""

from __future__ import annotations

import hashlib
from typing import Any

from fairy2i_runtime.engine.graph.call import GraphError
from fairy2i_runtime.engine.graph.layers import DOMAIN, OPERATORS

# sha256 of a function, see digest; the versions that were ever exported
FUNCTION_DIGESTS = frozenset(
    {
        "2fa9e9aa665e8cf5e4053bb20ec5c215df130bd8dfa828ee3b91d003de3b08f6",  # of layout version 1 alone
        "619693acebcb76334b0178fb72d2f60e65592bc46f23784d7919208c347d59ab",
        "aa6c42fcfa219ba79dac3f050bdcb1ee2460db93a80f42c54686f2213397825b",  # with rounding of activations
        # of two and of three layers, without and with rounding
        "85a8de7d70e6f0f9c2d1b504747ebff3a3a1d54e7afe262dd37702b2e1e312c4",
        "d08d24eded946ac3db72346d4554848d26887985ce8e2ad078e0fb35865a4714",
        "960f98fee64d37332d61deae38ee727ae741c2dc9e492b0c140c86ee4394f8ac",
        "319bf96c8e14359ce092589d32d66857ee684d11168c5b5d0554fc3d33f515b0",
    }
)


def check_function(function: dict[str, Any]) -> None:
    name = (function.get("domain", ""), function.get("name", ""))
    if name[0] != DOMAIN or name[1] not in OPERATORS or digest(function) not in FUNCTION_DIGESTS:
        raise GraphError(f"a function {'::'.join(name)!r} that no release has written")


def digest(function: dict[str, Any]) -> str:
    """Hash of what a function computes; names of nodes, comments and versions of operator sets are no part of it."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return sorted((key, plain(item)) for key, item in value.items() if key not in ("doc", "metadata", "opsets"))
        return [plain(item) for item in value] if isinstance(value, list) else value

    nodes = [{key: item for key, item in node.items() if key != "name"} for node in function["nodes"]]
    return hashlib.sha256(repr(plain({**function, "nodes": nodes})).encode()).hexdigest()
