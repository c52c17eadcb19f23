"""Mails of other projects: each arrives intact, or is rejected for a reason that is right."""
