"""Kinds of values that a config key takes: what is accepted, for a check and in words."""

import ast
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yacs.config import CfgNode


def literal(text: Any) -> Any:
    """What a text means as a Python literal, as yacs reads it; one that means nothing, and all else, as it is."""
    if not isinstance(text, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def as_typed(value: Any) -> str:
    """A value as a shell's command line takes it."""
    if isinstance(value, (list, tuple)) or (isinstance(value, str) and (not value or " " in value)):
        return f'"{value}"'
    return str(value)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Values that a key takes.

    Attributes:
        why: what a refused value goes against, where the range alone does not say it: "<key> is <value>, but <why>".
    """

    why: str = ""

    def accepted(self, cfg: CfgNode) -> str:
        """What is accepted beside the other settings of a config, in words."""
        raise NotImplementedError

    def fits(self, value: Any) -> bool:
        """Whether a value is of the right type."""
        raise NotImplementedError

    def holds(self, value: Any, cfg: CfgNode) -> bool:
        """Whether a value is accepted beside the other settings of a config."""
        return self.fits(value)

    def read(self, given: Any) -> Any:
        """The value that a text of a command line, or an entry of a YAML file, stands for."""
        return literal(given)


@dataclass(frozen=True)
class Number(Kind):
    """Finite numbers from `low` to `high`; None: no bound.

    Attributes:
        low, high: the bounds, themselves accepted unless `open_low`, `open_high`.
        whole: only integers.
        odd: only odd ones.
        meaning: of special values within the range.
    """

    low: float | None = None
    high: float | None = None
    whole: bool = False
    open_low: bool = False
    open_high: bool = False
    odd: bool = False
    meaning: str = ""

    def accepted(self, cfg: CfgNode) -> str:
        words = ["an odd" if self.odd else "a", "whole" if self.whole else "", "number"]
        if self.low is not None:
            words.append(f"{'above' if self.open_low else 'from'} {self.low:,}")
        if self.high is not None:
            words.append(f"{'and below' if self.open_high else 'to'} {self.high:,}")
        return " ".join(filter(None, words)) + (f" ({self.meaning})" if self.meaning else "")

    def fits(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return self.whole or isinstance(value, float) or abs(value) < 2**1023  # as large as a float may be

    def holds(self, value: Any, cfg: CfgNode) -> bool:
        if not self.fits(value) or not (self.whole or math.isfinite(value)) or (self.odd and value % 2 == 0):
            return False
        if self.low is not None and not (value > self.low if self.open_low else value >= self.low):
            return False
        return self.high is None or (value < self.high if self.open_high else value <= self.high)


def whole(low: int | None = None, high: int | None = None, **more: Any) -> Number:
    """Integers from low to high."""
    return Number(low, high, whole=True, **more)


ANY_NUMBER, POSITIVE, NOT_NEGATIVE = Number(), Number(0, open_low=True), Number(0)
SHARE = Number(0, 1)
BELOW_ONE = Number(0, 1, open_high=True)


@dataclass(frozen=True)
class Flag(Kind):
    """True or False."""

    def accepted(self, cfg: CfgNode) -> str:
        return "True, False"

    def fits(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Text(Kind):
    """Any text; one that looks like a number is a text as well, as a folder called 2024 is."""

    def accepted(self, cfg: CfgNode) -> str:
        return "a text"

    def fits(self, value: Any) -> bool:
        return isinstance(value, str)

    def read(self, given: Any) -> Any:
        value = literal(given)
        if isinstance(given, str):
            return value if isinstance(value, str) else given
        return str(given) if isinstance(given, int) and not isinstance(given, bool) else given


@dataclass(frozen=True)
class Words(Text):
    """A text with words in it."""

    def accepted(self, cfg: CfgNode) -> str:
        return "one or more words"

    def holds(self, value: Any, cfg: CfgNode) -> bool:
        return self.fits(value) and any(map(str.isalnum, value))


@dataclass(frozen=True)
class Place(Text):
    """A file or folder, or a name in place of one; where things lie changes no numbers."""


@dataclass(frozen=True)
class Found(Place):
    """A file or folder that is there, or "" for none.

    Attributes:
        what: what is looked for, in words.
    """

    what: str

    def accepted(self, cfg: CfgNode) -> str:
        return f'{self.what} that is there, or ""'

    def holds(self, value: Any, cfg: CfgNode) -> bool:
        return self.fits(value) and (not value or Path(value).expanduser().exists())


@dataclass(frozen=True)
class Choice(Text):
    """One of a few names.

    Attributes:
        names: those accepted beside the other settings of a config; None: they are not known before it runs.
    """

    names: Callable[[CfgNode], Sequence[str] | None]

    def accepted(self, cfg: CfgNode) -> str:
        return ", ".join(self.names(cfg) or ())

    def holds(self, value: Any, cfg: CfgNode) -> bool:
        names = self.names(cfg)
        return self.fits(value) and (names is None or value in names)


def one_of(*names: str) -> Choice:
    """These names."""
    return Choice(lambda cfg: names)


def listed_in(module: str, name: str) -> Choice:
    """The names that a module lists; any where it does not, as the original Dassl does not list all of its own."""

    def names(cfg: CfgNode) -> Sequence[str] | None:
        found = getattr(importlib.import_module(module), name, None)
        return None if found is None else tuple(found)

    return Choice(names)


@dataclass(frozen=True)
class Only(Kind):
    """A single value, of a key that Dassl has for others."""

    value: Any

    def accepted(self, cfg: CfgNode) -> str:
        return as_typed(self.value)

    def fits(self, value: Any) -> bool:
        return type(value) is type(self.value)

    def holds(self, value: Any, cfg: CfgNode) -> bool:
        return self.fits(value) and value == self.value


@dataclass(frozen=True)
class Anything(Kind):
    """Whatever it is."""

    def accepted(self, cfg: CfgNode) -> str:
        return "anything"

    def fits(self, value: Any) -> bool:
        return True


@dataclass(frozen=True)
class Several(Kind):
    """A list or tuple.

    Attributes:
        item: what each of its entries is.
        least: how many there are at least.
        exactly: how many there are, where that is fixed.
        rising: whether none is below the one before it.
    """

    item: Kind
    least: int = 0
    exactly: int | None = None
    rising: bool = False

    def accepted(self, cfg: CfgNode) -> str:
        number = f" of {self.exactly}" if self.exactly else " of one or more" if self.least else ""
        each = f"{'one of ' if isinstance(self.item, Choice) else ''}{self.item.accepted(cfg)}"
        return f"a {'rising ' if self.rising else ''}list{number}, each {each}"

    def read(self, given: Any) -> Any:
        value = literal(given)
        return type(value)(map(self.item.read, value)) if isinstance(value, (list, tuple)) else value

    def fits(self, value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(map(self.item.fits, value))

    def holds(self, value: Any, cfg: CfgNode) -> bool:
        return (
            self.fits(value)
            and all(self.item.holds(entry, cfg) for entry in value)
            and len(value) >= self.least
            and self.exactly in (None, len(value))
            and (not self.rising or list(value) == sorted(value))
        )


@dataclass(frozen=True)
class Pairs(Kind):
    """KEY VALUE pairs of one section, in a list; whether each of them is accepted, the section's own keys say.

    Attributes:
        section: "OPTIM".
        example: one of its keys, and a value.
    """

    section: str
    example: tuple[str, Any]

    def accepted(self, cfg: CfgNode) -> str:
        return f"pairs of an {self.section} key and a value, such as {as_typed(list(self.example))}"

    def fits(self, value: Any) -> bool:
        return (
            isinstance(value, (list, tuple))
            and len(value) % 2 == 0
            and all(str(key).startswith(f"{self.section}.") for key in value[::2])
        )


def kind_of(default: Any) -> Kind:
    """The kind of a key as far as its default tells."""
    if isinstance(default, bool):
        return Flag()
    if isinstance(default, int):
        return whole()
    if isinstance(default, float):
        return ANY_NUMBER
    if isinstance(default, str):
        return Text()
    return Several(Anything()) if isinstance(default, (list, tuple)) else Anything()
