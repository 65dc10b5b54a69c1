"""Errors of input files."""


class DataError(ValueError):
    """An input cannot be used; the message is one line that says what, where and why."""
