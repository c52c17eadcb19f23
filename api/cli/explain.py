"""To come."""


def explain() -> None:
    """To come."""
