"""The one source of time, passed in so that tests never sleep."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Returns seconds that only grow; the zero point has no meaning."""

monotonic: Clock = time.monotonic
