"""To come."""


def setup() -> None:
    """To come."""
