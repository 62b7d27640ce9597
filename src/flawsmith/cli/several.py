"""Options that take several values in a row: ``--seeds 0 1 2`` for ``--seeds 0 --seeds 1 --seeds 2``."""

from __future__ import annotations

from typing import Any, ClassVar

from typer.core import TyperCommand


class SeveralValues(TyperCommand):
    """A command with options that may be given more than one value at a time.

    Attributes:
        numbers: options whose further values end where something else than a number comes.
        words: options whose further values end at the next option, so that arguments come before it.
    """

    numbers: ClassVar[frozenset[str]] = frozenset()
    words: ClassVar[frozenset[str]] = frozenset()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each further value, then parse as ever."""
        expanded: list[str] = []
        option, has_value = "", False
        for place, argument in enumerate(args):
            if argument == "--":
                expanded += args[place:]
                break
            if argument.startswith("-") and not _is_number(argument):
                option, has_value = argument, False
            elif has_value and not self._continues(option, argument):
                option = ""
            elif has_value:
                expanded.append(option)
            else:
                has_value = True
            expanded.append(argument)
        return super().parse_args(ctx, expanded)

    def _continues(self, option: str, argument: str) -> bool:
        return option in self.words or (option in self.numbers and _is_number(argument))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
