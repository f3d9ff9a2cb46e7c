"""Every error a user can cause: one line that says what was given, what is expected, what to do."""


class Dinov3SegError(Exception):
    """Root of all errors raised on purpose. Commands print it as one line and exit with `exit_code`."""

    exit_code = 1


class InputError(Dinov3SegError, ValueError):
    """An image, class list or option that cannot be used as given."""

    exit_code = 2


class WeightsError(Dinov3SegError):
    """A checkpoint file that is missing, unreadable, or whose keys or shapes are not the model's."""


class BundleError(Dinov3SegError):
    """A bundle that is incomplete, altered, or written for another version."""


class EngineError(Dinov3SegError):
    """An engine library that is missing, or an engine that cannot run here."""


class ExportError(Dinov3SegError):
    """A graph that could not be exported, or that holds what engines cannot run."""


class ParityError(Dinov3SegError):
    """An engine whose results differ from the reference by more than the tolerance.

    Attributes:
        stage: The first stage that is wrong; "" where only whole frames are.
    """

    exit_code = 3

    def __init__(self, message: str, stage: str = "") -> None:
        super().__init__(message)
        self.stage = stage


class OutputError(Dinov3SegError, OSError):
    """A result that cannot be written where it was asked to go."""
