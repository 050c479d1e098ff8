"""Errors that a user can act on: the command line prints them as one line and exits with code 2."""


class FewstepError(Exception):
    """Base of all errors whose message is one sentence for the user."""


class UnknownNameError(FewstepError, LookupError):
    """No method, model, task, recipe or kernel of that name; the message lists the nearest names."""


class UnsupportedModelError(FewstepError, TypeError):
    """The method cannot be applied to this model; the model is left as it was."""


class SeamConflictError(FewstepError, RuntimeError):
    """Two methods want the same seam of one model, or one method is applied twice."""


class AssetMissing(FewstepError, FileNotFoundError):
    """A file that another package ships is not here; the message names the command that installs it."""


class BadFileError(FewstepError, ValueError):
    """A file exists but cannot be used: truncated, corrupt, of another kind, or not UTF-8."""
