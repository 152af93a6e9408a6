"""Contexts -> text features through a text tower that looks at all positions, padding among them.

Of a tower that is not causal, or whose feature is read elsewhere than at EOS, nothing can be cut or shared: every
prompt runs over all positions, as its own code has it. They run many at a time, within the memory budget, and the last
layer at the one position where the feature is read.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainers.modules.clip.text_tower import FIRST, LAST, TextTower
from trainers.modules.prompt_encoder import PromptEncoder, learns
from trainers.modules.prompt_tokens import Slot, prompt_tails
from trainers.modules.transformer_block import after_attention, layer_norm, project

CPU_MEMORY_MB = 2048
GPU_MEMORY_SHARE = 0.25  # of the device's memory
WORD = -1  # in the place of a slot's row: a token that is a word's


class FullPromptEncoder(PromptEncoder):
    """As `PromptEncoder`, with all positions of every prompt."""

    # Buffers.
    _tokens: Tensor
    _slots: Tensor
    _read_at: Tensor

    def _lay_out(self, classnames, n_slots, class_token_position):
        tower, tokenizer, length = self.tower, self.tower.tokenizer, self.tower.context_length
        tokens, slots, read_at = [], [], []
        for tail in prompt_tails(classnames, n_slots, class_token_position, 0, length, tokenizer):
            prompt = [*tokenizer.before, *tail]
            eos = len(prompt) - len(tokenizer.after)
            prompt += [tokenizer.pad] * (length - len(prompt))
            tokens.append([tokenizer.pad if isinstance(entry, Slot) else entry for entry in prompt])
            slots.append([entry.row if isinstance(entry, Slot) else WORD for entry in prompt])
            read_at.append({LAST: length - 1, FIRST: 0}.get(tower.pool, eos))
        device = tower.token_embedding.weight.device
        for name, rows in (("_tokens", tokens), ("_slots", slots), ("_read_at", read_at)):
            self.register_buffer(name, torch.tensor(rows, device=device), persistent=False)  # (C, L), or (C,)
        self._check_memory(length)

    def _encode_all(self, ctx, deep):
        # One context for each class in turn, or all classes for each context in turn: S = C or B * C prompts.
        one_each = ctx if self.class_specific or ctx.dim() == 3 else ctx.unsqueeze(0)
        n_prompts = self.n_cls if self.class_specific else len(one_each) * self.n_cls
        prompts = torch.arange(n_prompts, device=ctx.device)
        at_a_time = max(1, self._tokens_at_a_time(ctx, deep) // self.tower.context_length)
        chunks = prompts.split(at_a_time)
        recompute = len(chunks) > 1 and learns(ctx, deep)

        def run(chunk):
            if recompute:
                return checkpoint(self._encode_prompts, one_each, deep, chunk, use_reentrant=False)
            return self._encode_prompts(one_each, deep, chunk)

        features = torch.cat([run(chunk) for chunk in chunks]) if len(chunks) > 1 else run(prompts)
        if self.class_specific or ctx.dim() == 2:
            return features
        return features.view(len(ctx), self.n_cls, -1)

    def _encode_prompts(self, ctx, deep, prompts):
        """Text features (S, E) of the prompts of these numbers (S,)."""
        tower = self.tower
        classes = prompts % self.n_cls
        tokens, slots = self._tokens[classes], self._slots[classes]
        vectors = ctx[classes if self.class_specific else prompts // self.n_cls]
        # What the words' vectors are is asked of the tower each time: kept for all classes, they would take more room.
        words = tower.token_embedding.weight[tokens]
        position = tower.positional_embedding
        x = (_placed(words.to(vectors.dtype), vectors, slots, slots >= 0) + position).to(tower.dtype)
        at, each = self._read_at[classes], torch.arange(len(prompts), device=prompts.device)
        for layer, block in enumerate(self.blocks):
            if 0 < layer <= len(deep):
                replaced = (slots >= 0) & (slots < self.n_ctx)
                x = _placed(x, deep[layer - 1].expand(len(x), -1, -1), slots, replaced)
            normed, last = layer_norm(x, block.ln_1), layer == self.n_layers - 1
            if last:
                x, asking = x[each, at].unsqueeze(1), normed[each, at].unsqueeze(1)
                k, v = project(normed, block, first=1)
                (q,) = project(asking, block, last=1)
            else:
                q, k, v = project(normed, block)
            x = after_attention(x, self._attention(q, k, v, at if last else None), block)
        return self._text_features(x[:, 0])

    def _attention(self, q, k, v, at):
        """Attention (S, Q, D) of all positions, or of one position `at` (S,) in each prompt, to those it sees."""
        seen = None
        if self.tower.causal and at is not None:
            seen = (torch.arange(k.shape[2], device=k.device) <= at[:, None])[:, None, None]
        causal = self.tower.causal and at is None
        return F.scaled_dot_product_attention(q, k, v, seen, is_causal=causal).transpose(1, 2).flatten(2)


def memory_budget_mb(device: torch.device) -> int:
    """Memory that text features may take on a device, where it is not said how much: MB."""
    if device.type != "cuda":
        return CPU_MEMORY_MB
    return int(torch.cuda.get_device_properties(device).total_memory * GPU_MEMORY_SHARE) // 2**20


def prompt_encoder(clip_model: Any, classnames: Sequence[str], **settings: Any) -> PromptEncoder:
    """The PromptEncoder that a text tower takes: that which cuts and shares, if it can be.

    Args:
        clip_model, classnames, settings: see `PromptEncoder`.
    """
    tower = TextTower.of(clip_model)
    return (PromptEncoder if tower.can_be_cut else FullPromptEncoder)(tower, classnames, **settings)


def _placed(x, vectors, slots, where):
    """x (S, L, D) with vectors (S, n, D) in the places `where` (S, L), each the one of its slot's number (S, L)."""
    rows = slots.clamp(min=0).unsqueeze(-1).expand(-1, -1, x.shape[-1])
    # Where a place's number is beyond the vectors, it is none of theirs.
    return torch.where(where.unsqueeze(-1), vectors.gather(1, rows.clamp(max=vectors.shape[1] - 1)), x)
