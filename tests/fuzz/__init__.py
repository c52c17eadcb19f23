"""Fuzzing of what reads hostile octets: targets.py says what must hold, `make fuzz` looks for what breaks it."""
