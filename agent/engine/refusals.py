"""Why a model cannot be loaded or a prompt not be read: what every runtime raises."""

from __future__ import annotations


class PromptRejected(Exception):
    """The messages cannot be turned into a prompt. ``str()`` never holds their text."""

    def __init__(self, message: str, param: str = "") -> None:
        """``param`` is at fault, where it is not the prompt itself."""
        super().__init__(message)
        self.param = param


class PromptTooLong(Exception):
    """The prompt has more tokens than a context holds. ``str()`` gives the numbers."""


class ModelUnloadable(Exception):
    """The file cannot be loaded; trying again will not help."""


class RuntimeBroken(Exception):
    """The native layer is in a state that cannot be trusted: the worker must end."""
