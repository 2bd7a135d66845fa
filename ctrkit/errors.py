"""The one error that is meant for the person at the keyboard."""


class UserError(ValueError):
    """Something that the user can mend: a file, a key, a column, a value.

    The message names the thing, says what is wrong with it and the way out. The command line prints it without a
    traceback and exits with code 2; any other exception is a defect of ctrkit.
    """
