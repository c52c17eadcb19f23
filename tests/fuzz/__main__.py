"""Fuzz one target with atheris: python -m tests.fuzz TARGET FOLDER [options of libFuzzer]. Finds lie in FOLDER."""

from __future__ import annotations

import os
import sys

import atheris

with atheris.instrument_imports(include=["core", "tests.fuzz"]):
    from tests.fuzz.targets import MAX_OCTETS, SEEDS, guarded


def main() -> None:
    name, folder, *options = sys.argv[1:]
    corpus = os.path.join(folder, name)
    os.makedirs(corpus, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        with open(os.path.join(corpus, f"seed-{number}"), "wb") as file:
            file.write(seed)
    octets = MAX_OCTETS // 4 if name in ("body", "recode") else MAX_OCTETS  # their reference is slow
    limits = [f"-max_len={octets}", "-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup(
        [sys.argv[0], *limits, f"-artifact_prefix={folder}/{name}-", *options, corpus], lambda d: guarded(name, d)
    )
    atheris.Fuzz()


main()
