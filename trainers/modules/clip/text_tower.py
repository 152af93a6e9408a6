"""The text tower of a CLIP, in the form that the prompt encoder needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from trainers.modules.clip.tokenizer import CLIP_TOKENIZER, Tokenizer

# Where the feature of a text is read: at EOS, at the last position (padding), or at the first.
EOS, LAST, FIRST = "eos", "last", "first"
# open_clip's names for them: argmax is the highest id, eos a named id.
POOLS = {"argmax": EOS, "eos": EOS, "last": LAST, "first": FIRST}


@dataclass(frozen=True, eq=False)
class TextTower:
    """A frozen text tower, which shares its weights with the model: a pre-norm transformer with blocks like OpenAI's.

    Attributes:
        token_embedding: V tokens of width D.
        positional_embedding: (L, D).
        projection: width D -> E: a matrix (D, E), a linear layer with bias, or None if E is D.
        causal: whether a position sees only earlier positions.
        pool: where the feature is read: EOS, LAST or FIRST.
    """

    token_embedding: nn.Embedding
    positional_embedding: Tensor
    blocks: Sequence[Any]
    ln_final: nn.LayerNorm
    projection: Tensor | nn.Linear | None
    tokenizer: Tokenizer = CLIP_TOKENIZER
    causal: bool = True
    pool: str = EOS

    @classmethod
    def of(cls, model: Any, tokenizer: Tokenizer = CLIP_TOKENIZER) -> "TextTower":
        """Text tower of a `clip.model.CLIP` or an open_clip model; a TextTower is returned as it is."""
        if isinstance(model, cls):
            return model
        text = getattr(model, "text", model)
        blocks = getattr(getattr(text, "transformer", None), "resblocks", ())
        pool = getattr(model, "text_pool_type", getattr(text, "pool_type", "argmax"))
        is_clip = blocks and all(isinstance(block.attn, nn.MultiheadAttention) for block in blocks)
        if not is_clip or pool not in POOLS or getattr(text, "cls_emb", None) is not None:
            raise UserError("The text tower of this backbone is not CLIP's transformer. Name another architecture.")
        causal = getattr(text, "attn_mask", model) is not None  # OpenAI's models have no such attribute
        embedding, position, projection = text.token_embedding, text.positional_embedding, text.text_projection
        eos = getattr(model, "text_eos_id", getattr(text, "eos_id", None)) if pool == "eos" else tokenizer.size - 1
        if tokenizer.size > embedding.num_embeddings or (POOLS[pool] == EOS and eos != tokenizer.after[0]):
            raise UserError(
                f"The tokenizer belongs to another model: it has {tokenizer.size:,} tokens and ends texts with token "
                f"{tokenizer.after[0]}; the text tower has {embedding.num_embeddings:,} and reads token {eos}."
            )
        return cls(embedding, position, blocks, text.ln_final, projection, tokenizer, causal, POOLS[pool])

    @property
    def context_length(self) -> int:
        """L, the number of positions."""
        return self.positional_embedding.shape[0]

    @property
    def width(self) -> int:
        """D, the size of a token."""
        return self.positional_embedding.shape[1]

    @property
    def feature_size(self) -> int:
        """E, the size of a feature."""
        if self.projection is None:
            return self.width
        return self.projection.out_features if isinstance(self.projection, nn.Linear) else self.projection.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the matrices."""
        return self.blocks[0].mlp.c_fc.weight.dtype

    @property
    def can_be_cut(self) -> bool:
        """Whether a prompt may end at its EOS and share its beginning with others, as in PromptEncoder."""
        return self.causal and self.pool == EOS and len(self.tokenizer.before) == 1 and len(self.tokenizer.after) == 1

    @property
    def architecture(self) -> str:
        """How the tower computes, as far as weights do not say it."""
        return f"{architecture_of(self.blocks)}, causal {self.causal}, read at {self.pool}"

    def project(self, x: Tensor) -> Tensor:
        """Output of the last layer norm (..., D) -> features (..., E)."""
        if self.projection is None:
            return x
        return self.projection(x) if isinstance(self.projection, nn.Linear) else x @ self.projection


def activation_of(block: Any) -> str:
    """Name of a block's activation: "quick_gelu", "gelu", "gelu_tanh", or the name of its class."""
    activation = block.mlp.gelu
    if isinstance(activation, nn.GELU):
        return "gelu_tanh" if activation.approximate == "tanh" else "gelu"
    name = type(activation).__name__
    return "quick_gelu" if name == "QuickGELU" else name


def architecture_of(blocks: Sequence[Any]) -> str:
    """Activation, heads and epsilon of a transformer."""
    block = blocks[0]
    return f"{activation_of(block)}, {block.attn.num_heads} heads, eps {block.ln_1.eps}"
