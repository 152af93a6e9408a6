"""CLIP's byte pair encoding with the vocabulary and the merges that come with weights."""

from collections.abc import Mapping, Sequence

from clip.clip import _tokenizer as openai_tokenizer
from clip.simple_tokenizer import SimpleTokenizer

from common.errors import some
from trainers.modules.tokenizers import CLIP_TOKENIZER, ClipTokenizer

SOS, EOS = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


class GivenBpe(SimpleTokenizer):
    """OpenAI's tokenizer with another vocabulary.

    Args:
        encoder: ids by token.
        merges: pairs of tokens, those that are joined first in front.

    Raises:
        ValueError: the vocabulary lacks a byte, what a merge makes, or the tokens of start and end.
    """

    def __init__(self, encoder: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
        self.byte_encoder, self.byte_decoder = openai_tokenizer.byte_encoder, openai_tokenizer.byte_decoder
        bytes_alone = self.byte_encoder.values()
        needed = [*bytes_alone, *(sign + END_OF_WORD for sign in bytes_alone), *map("".join, merges), SOS, EOS]
        missing = [token for token in needed if token not in encoder]
        if missing:
            raise ValueError(f"its vocabulary lacks {some(map(repr, missing), 3)}")
        self.encoder = dict(encoder)
        self.decoder = {number: token for token, number in encoder.items()}
        self.bpe_ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.cache = {SOS: SOS, EOS: EOS}
        self.pat = openai_tokenizer.pat


def clip_tokenizer(encoder: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> ClipTokenizer:
    """The tokenizer of a vocabulary and its merges: OpenAI's own where they are its own.

    Raises:
        ValueError: see GivenBpe.
    """
    ranks = openai_tokenizer.bpe_ranks
    same = len(merges) == len(ranks) and all(ranks.get(pair) == rank for rank, pair in enumerate(merges))
    if same and encoder == openai_tokenizer.encoder:
        return CLIP_TOKENIZER
    return ClipTokenizer(GivenBpe(encoder, merges))
