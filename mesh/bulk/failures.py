"""Why a job stops before its end. Every message says what to do; what was done until then is kept in each case.

::

    BulkFailure
    ├── BadLine           a line of the input cannot be embedded
    ├── GaveUp            the worker has not answered for longer than the user waits
    ├── Refused           the command makes no sense, or not together with what is there already
    └── (itself)          the worker refuses what can never work
"""

from __future__ import annotations


class BulkFailure(Exception):
    """Base of all; the text is for the user."""


class BadLine(BulkFailure):
    """A line that cannot be embedded.

    Attributes:
        line: its number, from 1.
        why: what is wrong with it, as half a sentence.
    """

    def __init__(self, line: int, why: str) -> None:
        super().__init__(f"line {line}: {why}")
        self.line = line
        self.why = why


class GaveUp(BulkFailure):
    """The worker has not answered for too long."""


class Refused(BulkFailure):
    """Another input, model or setting than the job began with, a file in the way, or a package that lacks."""
