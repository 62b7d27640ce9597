"""Options that take several values in a row: ``--seeds 0 1 2`` for ``--seeds 0 --seeds 1 --seeds 2``."""

from __future__ import annotations

from typing import Any, ClassVar

from typer.core import TyperCommand


class SeveralValues(TyperCommand):
    """A command whose options in ``several`` may be given more than one value at a time.

    What follows such an option belongs to it up to the next option, so arguments come before it.
    """

    several: ClassVar[frozenset[str]] = frozenset()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each further value, then parse as ever."""
        expanded: list[str] = []
        current, fresh = "", False
        for place, argument in enumerate(args):
            if argument.startswith("-") and not _is_number(argument):
                current, fresh = (argument if argument in self.several else ""), True
                if argument == "--":
                    return super().parse_args(ctx, [*expanded, *args[place:]])
            elif current and not fresh:
                expanded.append(current)
            else:
                fresh = False
            expanded.append(argument)
        return super().parse_args(ctx, expanded)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
