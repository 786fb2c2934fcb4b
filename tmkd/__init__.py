"""tmkd: two-stage multi-teacher knowledge distillation for web question answering."""

import logging

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a library prints nothing of its own accord
