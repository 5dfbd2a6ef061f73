"""The step that drops units."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.core.axis import Slot
from secateur.core.errors import SecateurError


@dataclass(frozen=True)
class Cut:
    """What one axis keeps: ascending indices of the model the step starts from."""

    axis: str
    units: int
    kept: tuple[int, ...]
    slots: tuple[Slot, ...]
    exact: bool = True
    gate: str = "read"

    def __post_init__(self) -> None:
        bad = None
        if not self.kept:
            bad = "no unit left"
        elif self.kept[0] < 0 or self.kept[-1] >= self.units:
            bad = f"unit {self.kept[0] if self.kept[0] < 0 else self.kept[-1]}"
        elif any(b <= a for a, b in zip(self.kept, self.kept[1:], strict=False)):
            bad = "units that repeat or do not ascend"
        if bad:
            do = f"name at least one of the units 0 to {self.units - 1}, ascending, each once"
            raise SecateurError(f"a cut of axis {self.axis!r}", bad, do)

    @property
    def dropped(self) -> tuple[int, ...]:
        """The units that go."""
        kept = set(self.kept)
        return tuple(unit for unit in range(self.units) if unit not in kept)


@dataclass(frozen=True)
class Keep:
    """A step that drops units. All its indices are of the model the step starts from, so order inside does not exist."""

    cuts: tuple[Cut, ...]

    def __post_init__(self) -> None:
        names = [cut.axis for cut in self.cuts]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise SecateurError("a keep step", f"axis {twice!r} named twice", "name each axis once per step")
        object.__setattr__(self, "cuts", tuple(sorted(self.cuts, key=lambda cut: cut.axis)))
