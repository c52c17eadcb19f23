"""To come."""


def process() -> None:
    """To come."""
