"""Errors that are meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend: a wrong name, a missing file, contradicting settings.

    The message is complete by itself: it names the file, key or domain, what was found, what is accepted
    and how to mend it. Raised in a data-loading worker process it arrives with the same message.

    What is raised is one of the subclasses below, each of which is also what Dassl.pytorch raises at that
    place: ``except FileNotFoundError`` and the like work as they do there.
    """

    def __init__(self, message):
        super().__init__(self._from_worker(str(message)))

    def __str__(self):
        # KeyError, a base of RegistryError, would show the repr of the message.
        return str(self.args[0])

    @classmethod
    def _from_worker(cls, message):
        # DataLoader re-raises an error of a worker as a new one of the same class whose message is the
        # worker's whole traceback; its last entry is the message that was meant for the user.
        if not message.startswith(f"Caught {cls.__name__} in DataLoader worker"):
            return message
        return message.rpartition(f"{cls.__module__}.{cls.__qualname__}: ")[2].rstrip("\n")


class UserFileNotFoundError(UserError, FileNotFoundError):
    """A file or folder that is not there."""


class UserOSError(UserError, OSError):
    """A file that is there and cannot be read."""


class UserValueError(UserError, ValueError):
    """A value that is not accepted."""


class UserTypeError(UserError, TypeError):
    """A value of the wrong kind."""


class UserAssertionError(UserError, AssertionError):
    """Something that was taken for granted and is not so."""


class UserRuntimeError(UserError, RuntimeError):
    """Contents that cannot be used: damaged, or made for something else."""


class RegistryError(UserValueError, KeyError):
    """A name that a registry or a table does not hold."""


class UserImportError(UserError, ImportError):
    """Something that is not installed, or that this core leaves out."""
