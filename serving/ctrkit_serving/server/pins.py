"""Versions that a management call has pinned, kept over a restart: the file MODELS_DIR/NAME/PINNED holds the number."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

FILE = "PINNED"


class Pins:
    """What the disk knows of the pins."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._kept: dict[str, int] = {}

    def read(self, disk: Mapping[str, Mapping[int, object]]) -> dict[str, int]:
        """The pins of the models on the disk; one whose version is gone, or that is no number, is none."""
        for name, versions in disk.items():
            with contextlib.suppress(OSError, ValueError):
                number = int(self._place(name).read_text(encoding="ascii"))
                if number in versions:
                    self._kept[name] = number
        return dict(self._kept)

    def keep(self, pins: Mapping[str, int]) -> None:
        """Make the disk's pins these.

        Raises:
            OSError: the disk is full or may not be written.
        """
        for name in self._kept.keys() - pins.keys():
            self._place(name).unlink(missing_ok=True)
            del self._kept[name]
        for name, number in pins.items():
            if self._kept.get(name) != number:
                new = self._place(name).with_name(f".{FILE}")
                new.write_text(f"{number}\n", encoding="ascii")
                new.replace(self._place(name))
                self._kept[name] = number

    def _place(self, name: str) -> Path:
        return self._models_dir / name / FILE
