"""The text tower of a CLIP of any family, as prompts are encoded through it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from trainers.modules.tokenizers import CLIP_TOKENIZER, Tokenizer

# Where the feature of a text is read: at its EOS, at the last position of all (a pad), or at the first.
EOS, LAST, FIRST = "eos", "last", "first"
# What OpenCLIP calls these; EOS is the token of the highest id, or one that is named.
POOLS = {"argmax": EOS, "eos": EOS, "last": LAST, "first": FIRST}


@dataclass(frozen=True, eq=False)
class TextTower:
    """Parts of a frozen text tower, shared with its model: a pre-norm transformer of blocks as OpenAI's.

    A block has ln_1, attn, ln_2, mlp.c_fc, mlp.gelu (its activation) and mlp.c_proj, and may have the layer scales
    ls_1 and ls_2; layer norms say their own eps.

    Attributes:
        token_embedding: V tokens of width D.
        positional_embedding: (L, D).
        blocks: its layers.
        ln_final: its last layer norm.
        projection: features of width D -> E: a matrix (D, E), a linear layer with a bias, or None where E is D.
        tokenizer: that its tokens are of.
        causal: whether a position sees only those before it.
        pool: where its feature is read: EOS, LAST or FIRST.
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
        """That of a `clip.model.CLIP`, or of OpenCLIP's CLIP and CustomTextCLIP; a TextTower is returned as it is.

        Raises:
            UserError: the tokenizer is another model's.
        """
        if isinstance(model, cls):
            return model
        text = getattr(model, "text", model)
        # OpenCLIP's say where they are read, and by their mask whether they are causal; OpenAI's read EOS, and are.
        pool = getattr(model, "text_pool_type", getattr(text, "pool_type", ""))
        causal = getattr(text, "attn_mask", model) is not None
        tower = cls(
            text.token_embedding,
            text.positional_embedding,
            text.transformer.resblocks,
            text.ln_final,
            text.text_projection,
            tokenizer,
            causal,
            POOLS.get(pool, EOS),
        )
        tower._check_tokenizer()
        if pool in ("argmax", "eos"):
            named = getattr(model, "text_eos_id", getattr(text, "eos_id", None))
            tower._check_end(named if pool == "eos" else tokenizer.size - 1)
        return tower

    def _check_tokenizer(self):
        rows = self.token_embedding.num_embeddings
        if self.tokenizer.size > rows:
            raise UserError(
                f"The tokenizer has {self.tokenizer.size:,} tokens, but the text tower has embeddings of {rows:,}: "
                "they are of different models, or the vocabulary was cut. Name weights whose vocabulary is whole."
            )

    def _check_end(self, token):
        end = self.tokenizer.after[0]
        if token != end:
            raise UserError(
                f"The text tower reads the feature of a text at its token {token}, and the tokenizer ends texts with "
                f"{end}: they are of different models."
            )

    @property
    def context_length(self) -> int:
        """L, the number of its positions."""
        return self.positional_embedding.shape[0]

    @property
    def width(self) -> int:
        """D, the size of its tokens."""
        return self.positional_embedding.shape[1]

    @property
    def feature_size(self) -> int:
        """E, the size of its features."""
        if self.projection is None:
            return self.width
        return self.projection.out_features if isinstance(self.projection, nn.Linear) else self.projection.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """What its matrices are in."""
        return self.blocks[0].mlp.c_fc.weight.dtype

    @property
    def can_be_cut(self) -> bool:
        """Whether a prompt may end at its EOS and share its beginning with others, as PromptEncoder has it."""
        return self.causal and self.pool == EOS and len(self.tokenizer.before) == 1 and len(self.tokenizer.after) == 1

    def project(self, x: Tensor) -> Tensor:
        """Features (..., E) of what the last layer norm made, (..., D)."""
        if self.projection is None:
            return x
        return self.projection(x) if isinstance(self.projection, nn.Linear) else x @ self.projection
