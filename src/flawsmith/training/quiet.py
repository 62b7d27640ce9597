"""Lightning without its announcements."""

from __future__ import annotations

import logging


class quiet_lightning:  # noqa: N801, used as a function
    """Lightning announces devices and tips on its loggers; what goes wrong still raises."""

    def __enter__(self) -> None:
        self._loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
