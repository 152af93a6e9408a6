"""Tokenize prompts: fixed words and places of context vectors, as CoOp orders them."""

from collections.abc import Sequence
from typing import NamedTuple

from common.errors import UserError, join_truncated, warn
from common.files import is_utf8
from trainers.modules.clip.tokenizer import CLIP_TOKENIZER, Tokenizer

CLASS_TOKEN_POSITIONS = ("end", "middle", "front")
WORD = -1


class Prompt(NamedTuple):
    """The positions of a prompt up to EOS, or to the last token that the tokenizer adds.

    Args:
        tokens: token ids, 0 in place of a context vector.
        vectors: number of the context vector at each position, WORD where there is a word.
    """

    tokens: list[int]
    vectors: list[int]


def check_class_names(names: Sequence[str], tokenizer: Tokenizer) -> None:
    """Raise UserError for fewer than two class names, or for different names with the same tokens.

    Two labels with one name are a warning: CLIP's names for ImageNet have "missile" and "sunglasses" twice.
    """
    if len(names) < 2:
        raise UserError(
            f"Class names: there is only {join_truncated(names)}, but a classifier needs two or more. Add classes, or "
            "set DATASET.SUBSAMPLE_CLASSES all."
        )
    by_tokens: dict[tuple[int, ...], str] = {}
    for name in names:
        if not is_utf8(name):
            raise UserError(f"Class name {name!r}: it is not UTF-8. Rename it.")
        other = by_tokens.setdefault(tuple(tokenize_words(name, tokenizer)), name)
        if other != name:
            raise UserError(
                f"Class names {other!r} and {name!r}: they have the same tokens, so their prompts are equal. Rename or "
                "merge them."
            )
    if repeated := sorted({name for name in names if list(names).count(name) > 1}):
        warn(f"several labels have the class name {join_truncated(repeated)}, so their prompts are equal.")


def tokenize_words(text: str, tokenizer: Tokenizer = CLIP_TOKENIZER) -> list[int]:
    """Token ids of a class name or of initial context words; underscores count as spaces, as in CoOp."""
    return tokenizer.encode(text.replace("_", " "))


def tokenize_prompts(
    classnames: Sequence[str],
    n_ctx: int,
    class_token_position: str,
    context_length: int,
    tokenizer: Tokenizer = CLIP_TOKENIZER,
) -> list[Prompt]:
    """The prompt of each class: [SOS] v_1 .. v_n [class name] "." [EOS], without padding.

    "front" puts the class name before the context, "middle" behind its first n_ctx // 2 vectors (Zhou et al., IJCV
    2022, Sec. 3.2).
    """
    if not classnames:
        raise UserError("The list of class names is empty. Give at least one name.")
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[class_token_position]
    room = context_length - len(tokenizer.before) - len(tokenizer.after) - n_ctx
    encode = tokenizer.encode_behind if before else tokenizer.encode
    prompts = []
    for classname in classnames:
        text = classname.replace("_", " ")
        name = encode(text)
        if not name:
            raise UserError(f"Class name {classname!r} has no word in it. Give it a name made of text.")
        # "name." is tokenized as one text: punctuation at the end of a name merges with the full stop.
        words = encode(text + ".")
        if len(words) > room:
            raise UserError(
                f"Class name {classname!r} takes {len(words)} tokens with its full stop, but the text tower has "
                f"{max(0, room)} left of {context_length}. Shorten the name, or the words or vectors around it."
            )
        stop = words[len(name) :] + list(tokenizer.after)
        first, second = range(before), range(before, n_ctx)
        tokens = [*tokenizer.before, *[0] * before, *words[: len(name)], *[0] * len(second), *stop]
        vectors = [*[WORD] * len(tokenizer.before), *first, *[WORD] * len(name), *second, *[WORD] * len(stop)]
        prompts.append(Prompt(tokens, vectors))
    return prompts
