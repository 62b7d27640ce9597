"""The one exception a user is meant to see."""

from __future__ import annotations


class FlawsmithError(Exception):
    """A mistake or a state that the user can fix.

    Its message is one line that says what is wrong, where, and how to fix it. The command line prints that line
    alone and ends with exit code 2; anything else that escapes is a defect of Flawsmith and keeps its traceback.
    """
