"""Telling KEY VALUE pairs from the other words of a command line."""

import re

KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)+|SEED|VERBOSE|USE_CUDA|RESUME|OUTPUT_DIR")


def split_at_key(words: list[str]) -> tuple[list[str], list[str]]:
    """The words before the first config key (such as OPTIM.MAX_EPOCH), and those from it on."""
    for i, word in enumerate(words):
        if KEY.fullmatch(word):
            return words[:i], words[i:]
    return words, []
