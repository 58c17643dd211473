"""Everything tfopt raises on purpose: a small family, each also a fitting built-in exception."""


class TfoptError(Exception):
    """Base of every error raised on purpose by tfopt."""

    def __str__(self) -> str:
        return _printable(super().__str__())


def _printable(text: str) -> str:
    """The text with escapes for what a terminal cannot show; messages quote what files hold."""
    return text if text.isprintable() else "".join(
        c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text
    )  # fmt: skip


class InputError(TfoptError, ValueError):
    """An argument, a recipe or a data file is wrong; the message says what to change."""


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that was asked for does not exist."""

    def __str__(self) -> str:  # OSError would print only its errno fields
        return _printable(str(self.args[0])) if self.args else ""


class DataError(InputError):
    """Data that cannot be used: damaged, empty, mislabelled or not text."""


class ModelFileError(InputError):
    """A file that is not a model, or one that is not safe to load."""


class WorkFailedError(TfoptError, RuntimeError):
    """The input was right but the work failed (training diverged, a converter gave up)."""


class NoRoomError(WorkFailedError, OSError):
    """The disk is full, or would be: the message names the file and the bytes."""

    def __str__(self) -> str:  # OSError would print only its errno fields
        return _printable(str(self.args[0])) if self.args else ""


class VerificationError(WorkFailedError):
    """A written artifact failed one of its checks.

    Attributes:
        check: name of the failed check, for example ``"max_abs_error"``.
        what: what was found.
    """

    def __init__(self, check: str, what: str) -> None:
        super().__init__(f"check '{check}' failed: {what}")
        self.check, self.what = check, what

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.check, self.what)
