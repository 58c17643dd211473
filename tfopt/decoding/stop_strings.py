"""Strings that end a text, held back until they are none."""

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string, holding back what may become one.

    Args:
        stop: the strings; none of them empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop, self._held = tuple(stop), ""
        self.found = False

    def push(self, text: str) -> str:
        """What can be shown now."""
        if self.found:
            return ""
        self._held += text
        places = [self._held.find(s) for s in self._stop]
        hits = [place for place in places if place >= 0]
        if hits:
            self.found = True
            shown, self._held = self._held[: min(hits)], ""
            return shown
        keep = max((self._overlap(s) for s in self._stop), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def rest(self) -> str:
        """What was held back, since no more text comes."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
