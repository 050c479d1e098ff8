"""Errors that a user can act on: the command line prints them as one line and exits with code 2."""


def check_least(options: object, **least: float) -> None:
    """Refuse numbers of `options` that are below the least ones of these names; None is no number.

    Raises:
        ValueError: one is; the message names it.
    """
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and not value >= bound:  # NaN is not, either
            raise ValueError(f"{name} must be at least {bound}, found {value}")


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
