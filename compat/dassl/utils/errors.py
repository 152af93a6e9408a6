"""Errors that a user can fix, of the types that Dassl.pytorch raises: ``except FileNotFoundError`` works as there."""


class UserError(Exception):
    """Base class. The message names the file or key, the problem and the fix; scripts print it without a traceback."""

    def __init__(self, message: object) -> None:
        text, kind = str(message), type(self)
        # DataLoader raises a worker's error again, with the worker's traceback as message. The last entry is ours.
        if text.startswith(f"Caught {kind.__name__} in DataLoader worker"):
            text = text.rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].rstrip("\n")
        super().__init__(text)

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError, a base of RegistryError, would show the repr


class UserFileNotFoundError(UserError, FileNotFoundError):
    pass


class UserOSError(UserError, OSError):
    pass


class UserValueError(UserError, ValueError):
    pass


class UserTypeError(UserError, TypeError):
    pass


class UserAssertionError(UserError, AssertionError):
    pass


class UserRuntimeError(UserError, RuntimeError):
    pass


class RegistryError(UserValueError, KeyError):
    pass


class UserImportError(UserError, ImportError):
    pass
