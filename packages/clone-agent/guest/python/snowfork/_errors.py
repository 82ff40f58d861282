"""The one error type of the module; raised by all its parts."""


class SnowforkError(Exception):
    """What went wrong: `code` is stable (docs/reference/errors.md), `details` is for programs."""

    def __init__(self, code, message, details=None):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.details = details or {}
