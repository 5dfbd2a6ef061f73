"""The one exception users see."""


class SecateurError(Exception):
    """Raised at the border for anything a user can mend.

    Three parts, one sentence: what was asked, what was found, what to do.
    The command line prints it without a traceback and exits with 2.

    >>> str(SecateurError("keep={'macs': 2}", "a share above 1", "give a number between 0 and 1"))
    "keep={'macs': 2}: found a share above 1; give a number between 0 and 1."
    """

    def __init__(self, asked: str, found: str, do: str) -> None:
        self.asked, self.found, self.do = asked, found, do
        super().__init__(f"{asked}: found {found}; {do}" + ("" if do.endswith("?") else "."))


class NotFinite(SecateurError):
    """Numbers that overflowed or are none. A search takes a candidate with such as one with an infinite loss."""


def nearest(word: object, known: "list[str] | tuple[str, ...]") -> str:
    """A hint that names the closest known spelling, or lists what is known."""
    import difflib

    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known)) or 'none'}"
