"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend: wrong name, missing file, contradicting settings.

    The message is complete by itself: it names the file, key or domain, what was found, what is
    accepted, and the command or line that mends it. Command-line tools print it without a traceback
    and exit with code 1; any other exception is a bug and keeps its traceback.
    """
