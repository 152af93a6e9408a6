"""Texts -> token ids, as a CLIP's text tower was trained to read them."""

import hashlib
import json
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

from clip import clip as openai_clip
from clip.simple_tokenizer import SimpleTokenizer


class Tokenizer(ABC):
    """What prompts are made of: ids of words, and of what stands around them.

    A text is `before`, its words, `after`, and then `pad` up to the last position of the tower.

    Attributes:
        before: ids in front of the words: [SOS], or nothing.
        after: ids behind them, [EOS] first.
        pad: id of what fills the other positions.
        size: all ids are below this.
    """

    LEAD = "a"  # a word that another one may stand behind

    before: tuple[int, ...]
    after: tuple[int, ...]
    pad: int
    size: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of the words of a text alone."""

    def encode_behind(self, text: str) -> list[int]:
        """Ids of the words of a text that stands behind others, with a space between them."""
        # Some tokenizers mark a space as a part of the word behind it, but none in front of the first word.
        lead, whole = self.encode(self.LEAD), self.encode(f"{self.LEAD} {text}")
        return whole[len(lead) :] if whole[: len(lead)] == lead else self.encode(text)

    @abstractmethod
    def sha256(self) -> str:
        """Fingerprint of all that ids of a text go by."""

    @abstractmethod
    def words(self) -> list[str]:
        """All tokens as words, by id; those that only begin or continue a word end in a hyphen."""


class ClipTokenizer(Tokenizer):
    """OpenAI's byte pair encoding, which OpenCLIP and Hugging Face's CLIPs have as well.

    Args:
        bpe: with OpenAI's vocabulary, or another (see `bpe.GivenBpe`).
    """

    pad = 0

    def __init__(self, bpe: SimpleTokenizer = openai_clip._tokenizer) -> None:
        self._bpe = bpe
        self.before = (self._bpe.encoder["<|startoftext|>"],)
        self.after = (self._bpe.encoder["<|endoftext|>"],)
        self.size = 1 + max(self._bpe.decoder)

    def encode(self, text: str) -> list[int]:
        return self._bpe.encode(text)

    def sha256(self) -> str:
        return digest(self._bpe.encoder, list(self._bpe.bpe_ranks))

    def words(self) -> list[str]:
        return self._words

    @cached_property
    def _words(self) -> list[str]:
        words = []
        for i in range(self.size):
            token = self._bpe.decoder.get(i, "<|none|>")
            if token.startswith("<|") and token.endswith("|>"):  # start and end of a text
                words.append(token)
                continue
            # The tokenizer has signs in the place of bytes; some tokens are a part of a letter's or an emoji's.
            letters = bytes(self._bpe.byte_decoder[sign] for sign in token.removesuffix("</w>"))
            words.append(letters.decode("utf-8", "backslashreplace") + ("" if token.endswith("</w>") else "-"))
        return words


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of what JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


CLIP_TOKENIZER = ClipTokenizer()
