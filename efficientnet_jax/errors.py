"""Errors by intent. What is raised on purpose for a person to mend is one of these, and is shown as one line; all else keeps its traceback."""


class UserError(ValueError):
    """A value that cannot work: the message gives the option, its value, the rule and a way out."""


class StorageError(OSError):
    """A file or folder that cannot be read or written as it stands: the message gives its path and a way out."""


class NotFinite(FloatingPointError):
    """The loss or the gradients are NaN or infinite: the message gives the step and the last good checkpoint."""


class NotThere(StorageError, FileNotFoundError):
    """A file or folder that is not there."""
