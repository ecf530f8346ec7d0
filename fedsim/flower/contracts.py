"""What is a Flower strategy or a Flower `ClientApp`; flwr is imported only where it must be.

Importing it takes half a second, and where nobody has imported it nothing can be either of them.
"""

from __future__ import annotations

import sys
from typing import Any


def strategy_class() -> type:
    """Return the base class of Flower's strategies."""
    from flwr.serverapp.strategy import Strategy

    return Strategy


def is_strategy_class(value: Any) -> bool:
    """Whether a value is a class of Flower strategies."""
    module = sys.modules.get("flwr.serverapp.strategy")
    return module is not None and isinstance(value, type) and issubclass(value, module.Strategy)


def is_client_app(value: Any) -> bool:
    """Whether a value is a Flower `ClientApp`."""
    module = sys.modules.get("flwr.clientapp")
    return module is not None and isinstance(value, module.ClientApp)
