"""Where each token of each class's prompt comes from: a fixed word or a slot of the context."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import UserError
from common.files import is_utf8
from common.messages import some, warn
from trainers.modules.clip.tokenizer import CLIP_TOKENIZER, Tokenizer

CLASS_TOKEN_POSITIONS = ("end", "middle", "front")


@dataclass(frozen=True)
class Slot:
    """The place of one context vector inside a prompt: its row in the (n_ctx, D) context."""

    row: int


class NameTooLong(UserError):
    """A class name does not fit into the text tower's positions.

    Args:
        what: which, and how much room there is.
        mend: what to do about it.
    """

    def __init__(
        self, what: str, mend: str = "Shorten the name or use fewer context tokens (N_CTX, or the words of CTX_INIT)."
    ) -> None:
        super().__init__(f"{what} {mend}")
        self.what = what


def check_class_names(names: Sequence[str], tokenizer: Tokenizer) -> None:
    """Check that there is a choice between class names, and that the text tower sees different texts.

    Two labels of one name are a warning: CLIP's names for ImageNet have "missile" and "sunglasses" twice.

    Raises:
        UserError: there are fewer than two names, one is not UTF-8, or two that differ have the same tokens.
    """
    if len(names) < 2:
        raise UserError(
            f"Class names: there is only {some(names)}. A classifier chooses between two classes or more; add classes, "
            "or set DATASET.SUBSAMPLE_CLASSES all."
        )
    by_tokens: dict[tuple[int, ...], str] = {}
    for name in names:
        if not is_utf8(name):
            raise UserError(f"Class name {name!r}: it is not UTF-8. Rename it.")
        other = by_tokens.setdefault(tuple(tokenizer.encode(name.replace("_", " "))), name)
        if other != name:
            raise UserError(
                f"Class names {other!r} and {name!r}: they have the same tokens, so no prompt tells them apart. Rename "
                "one of them, or put the two together."
            )
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        warn(f"several labels have the class name {some(twice)}, so no prompt tells them apart.")


def tokenize_context(text: str, tokenizer: Tokenizer = CLIP_TOKENIZER) -> list[int]:
    """Token ids of an initial context such as "a photo of a" (underscores count as spaces, as in CoOp)."""
    return tokenizer.encode(text.replace("_", " "))


def prompt_tails(
    classnames: Sequence[str],
    n_ctx: int,
    class_token_position: str,
    n_shared: int,
    context_length: int,
    tokenizer: Tokenizer = CLIP_TOKENIZER,
) -> list[list[int | Slot]]:
    """What follows the shared prefix [SOS] v_1 .. v_shared in each class's prompt, up to and with EOS.

    The token order is CoOp's (Zhou et al., IJCV 2022, Sec. 3.2; "middle" puts n_ctx // 2 vectors first).

    Args:
        classnames: C names as people write them; underscores count as spaces.
        n_ctx: number of context vectors.
        class_token_position: "end", "middle" or "front".
        n_shared: how many context vectors stand in the shared prefix; the others become `Slot`s.
        context_length: number of positions the text tower has.
        tokenizer: the tower's.

    Returns:
        C lists of token ids and `Slot`s; the last entries of each are the tokenizer's `after`.

    Raises:
        UserError: no class names, or an empty one.
        NameTooLong: one does not fit into the positions.
    """
    if not classnames:
        raise UserError("The list of class names is empty; prompts need at least one class name.")
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[class_token_position]
    slots = [Slot(row) for row in range(n_ctx)]
    encode = tokenizer.encode_behind if before else tokenizer.encode
    tails = []
    for classname in classnames:
        text = classname.replace("_", " ")
        words = encode(text)
        if not words:
            raise UserError(f"Class name {classname!r} has no word in it; give it a name made of text.")
        # "name." is tokenized as one text: a name that ends in punctuation merges with the full stop.
        with_stop = encode(text + ".")
        room = context_length - len(tokenizer.before) - len(tokenizer.after) - n_ctx
        if len(with_stop) > room:
            raise NameTooLong(
                f"Class name {classname!r} takes {len(with_stop)} tokens with its full stop, but {max(0, room)} are "
                f"left of the text tower's {context_length} positions beside {n_ctx} context tokens, start and end."
            )
        name, stop = with_stop[: len(words)], with_stop[len(words) :]
        tails.append(slots[n_shared:before] + name + slots[before:] + stop + list(tokenizer.after))
    return tails
