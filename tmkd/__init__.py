"""tmkd: two-stage multi-teacher knowledge distillation for web question answering.

The Python API is listed in `tmkd.api`; each name is an attribute of this package, imported when it is first used.
"""

import logging
from typing import TYPE_CHECKING, Any

from tmkd import api
from tmkd.api import __all__ as __all__

if TYPE_CHECKING:
    from tmkd.api import *  # noqa: F403

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a library prints nothing of its own accord


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(api, name)
    raise AttributeError(f"module 'tmkd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
