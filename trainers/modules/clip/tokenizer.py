"""Tokenizers of text towers: texts -> token ids."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from clip.clip import _tokenizer as openai_bpe

from common.errors import UserError


class Tokenizer:
    """OpenAI's byte pair encoding, which most CLIPs share.

    A prompt is `before`, the ids of its words, `after`, and `pad` up to the tower's last position.

    Attributes:
        before: [SOS], or nothing.
        after: [EOS], or several tokens that begin with it.
        size: number of tokens; all ids are smaller.
    """

    before: tuple[int, ...] = (openai_bpe.encoder["<|startoftext|>"],)
    after: tuple[int, ...] = (openai_bpe.encoder["<|endoftext|>"],)
    pad: int = 0
    size: int = len(openai_bpe.encoder)

    def encode(self, text: str) -> list[int]:
        """Ids of the words of a text, without start and end."""
        return openai_bpe.encode(text)

    def encode_behind(self, text: str) -> list[int]:
        """Ids of the words of a text that follows another word."""
        # Some tokenizers mark the space in front of a word, except for the first word of a text.
        lead, both = self.encode("a"), self.encode(f"a {text}")
        return both[len(lead) :] if both[: len(lead)] == lead else self.encode(text)

    def words(self) -> list[str]:
        """All tokens as text, ordered by id; of OpenAI's, a token that does not end a word ends with a hyphen."""
        texts = [openai_bpe.decode([i]) for i in range(self.size - 2)]
        return [text[:-1] if text[-1] == " " else f"{text}-" for text in texts] + ["<|startoftext|>", "<|endoftext|>"]


CLIP_TOKENIZER = Tokenizer()


class LibraryTokenizer(Tokenizer):
    """A tokenizer of the transformers package.

    Args:
        encode: text -> ids of its words.
        row: ids of SAMPLE's prompt, with start, end and padding.
        name: the backbone, for messages.
    """

    SAMPLE = "dog"

    def __init__(self, inner: Any, encode: Callable[[str], list[int]], row: list[int], name: str) -> None:
        self._inner, self._encode = inner, encode
        words = encode(self.SAMPLE)
        start = next((i for i in range(len(row)) if row[i : i + len(words)] == words), None)
        if start is None or len(row) < start + len(words) + 2 or row[-1] != row[-2]:
            raise UserError(f"Backbone {name}: its tokenizer does not end texts with an end token and padding: {row}.")
        self.before, self.pad, behind = tuple(row[:start]), row[-1], row[start + len(words) :]
        while len(behind) > 1 and behind[-1] == self.pad:  # end and padding can be the same token
            behind.pop()
        self.after, self.size = tuple(behind), len(inner)

    def encode(self, text: str) -> list[int]:
        return self._encode(text)

    def words(self) -> list[str]:
        return self._inner.convert_ids_to_tokens(list(range(self.size)))

    def sha256(self) -> str:
        """Hash (hex) of everything that the ids depend on."""
        probe = self.encode("A  Dog, 2 cats")
        backend = getattr(self._inner, "backend_tokenizer", None)
        # The text of the backend has the padding of the last call, which is the one above.
        parts = [self.before, self.after, self.pad, probe, self.words(), backend.to_str() if backend else ""]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
