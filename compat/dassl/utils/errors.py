"""Errors that are meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend: a wrong name, a missing file, contradicting settings.

    The message is complete by itself: it names the file, key or domain, what was found, what is accepted
    and how to mend it. Raised in a data-loading worker process it arrives with the same message.
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


class RegistryError(UserError, KeyError):
    """A name that a registry does not hold."""
