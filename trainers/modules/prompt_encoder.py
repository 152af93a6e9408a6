"""Contexts -> text features, without the work that CLIP's causal text tower makes superfluous.

A prompt is [SOS] v_1 .. v_n [class name] "." [EOS] and 60 or more positions of padding. The tower is causal, so

1. nothing after EOS can reach the EOS feature: every prompt ends at its own EOS;
2. [SOS] and the context vectors before the class name look the same for all classes: they run once per context,
   and each class's remaining tokens attend to their keys and values. [SOS] itself is the same for all contexts:
   its keys and values are computed once, at construction. This holds for deep contexts too, which take the places
   of the context vectors in later layers: what they replace is not computed;
3. the last layer's output is read at EOS only: its queries, projection and MLP run for EOS alone.

The remaining tokens of all classes lie in one packed row without padding, sorted by length, so that the linear
layers see one large matrix; only the few numbers of the attention are handled per length.

Where all of this is a few tokens, the number of calls costs more than the numbers in them. Then [SOS], the shared
vectors and the tails of all classes are one row, under a mask by which each class sees the prefix and itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.errors import UserError
from trainers.modules.clip.text_tower import TextTower
from trainers.modules.prompt_tokens import CLASS_TOKEN_POSITIONS, Slot, prompt_tails, tokenize_context
from trainers.modules.transformer_block import PROMPT_STD, after_attention, check_depth, layer_norm, project

# Working set per token in multiples of the width D, measured: what one layer holds at a time without gradients,
# and what one layer keeps for the backward pass.
INFERENCE_WIDTHS = 18
TRAINING_WIDTHS = 26

# Up to this many tokens in all, one masked row is faster than prefix and tails apart (measured at widths 128 and 512).
ROW_TOKENS = 128

# On CPUs, more tokens at a time than this do not speed up the matrix products, and fall out of the cache.
CPU_TOKENS = 2048


@dataclass(frozen=True)
class LengthGroup:
    """Neighbouring prompt tails of equal length in the packed row."""

    n_cls: int
    length: int

    @property
    def n_tokens(self) -> int:
        return self.n_cls * self.length


@dataclass(frozen=True)
class Pack:
    """Consecutive classes (in order of length) whose tails are encoded together."""

    first_token: int
    first_class: int
    groups: tuple[LengthGroup, ...]

    @property
    def n_tokens(self) -> int:
        return sum(group.n_tokens for group in self.groups)

    @property
    def n_cls(self) -> int:
        return sum(group.n_cls for group in self.groups)


class PromptEncoder(nn.Module):
    """Text features of the prompts that contexts make with class names, through a frozen CLIP text tower.

    Equal to running the tower over all positions (CoOp's PromptLearner and TextEncoder), differentiable with respect
    to the contexts, and many times cheaper.

    Args:
        clip_model: a TextTower, or a `clip.model.CLIP`, whose it is; it is used as it is (weights shared, never
            changed).
        classnames: C class names.
        n_ctx: number of context vectors; ignored when ctx_init is given.
        ctx_init: words the context starts from ("a photo of a"); their token count becomes n_ctx. "" for random.
        class_token_position: where the class name stands: "end", "middle" or "front".
        class_specific: contexts come as (C, n_ctx, D), one for each class, instead of one for all classes.
        memory_mb: bound on the intermediate results of one forward (and backward) pass, in MB. Contexts and classes
            are encoded in chunks that fit; in training, chunks beyond the bound are recomputed in the backward pass.
        n_learned: how many of ctx_init's tokens are learned, from the first on; the others stay fixed words of the
            prompt behind them (MaPLe: 2 of "a photo of a"). None: all. Ignored without ctx_init.
        normalised: whether text features are L2-normalised.

    Attributes:
        n_ctx, ctx_dim (D), n_cls (C), n_layers.

    Raises:
        UserError: an unknown position, fewer tokens in ctx_init than are to be learned, a class name that is empty or
            too long, a bound too small for one prompt.
        ValueError: the tower cannot be cut, so that it is one for `full_prompt_encoder.prompt_encoder`.
    """

    # Buffers.
    _initial_context: Tensor | None
    _fixed_words: Tensor | None
    _prefix_position: Tensor
    _sos: Tensor
    _sos_keys: Tensor
    _sos_values: Tensor
    _row_mask: Tensor | None
    _tail: Tensor
    _slot_at: Tensor
    _slot_rows: Tensor
    _slot_classes: Tensor
    _class_order: Tensor

    def __init__(
        self,
        clip_model: Any,
        classnames: Sequence[str],
        n_ctx: int = 16,
        ctx_init: str = "",
        class_token_position: str = "end",
        class_specific: bool = False,
        memory_mb: int = 2048,
        n_learned: int | None = None,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        if class_token_position not in CLASS_TOKEN_POSITIONS:
            raise UserError(
                f"CLASS_TOKEN_POSITION is {class_token_position!r}; accepted: {', '.join(CLASS_TOKEN_POSITIONS)}."
            )
        tower = TextTower.of(clip_model)
        init_tokens = tokenize_context(ctx_init, tower.tokenizer) if ctx_init else None
        self.n_ctx = _number_of_vectors(init_tokens, ctx_init, n_ctx, n_learned)
        self.n_cls = len(classnames)
        self.ctx_dim = tower.width
        self.class_specific = class_specific
        self.memory_mb, self.normalised = memory_mb, normalised

        self.tower = tower
        self.blocks = tower.blocks
        self.ln_final = tower.ln_final
        self.n_layers = len(self.blocks)

        # Fixed words are slots as the context vectors are, and are filled in behind them.
        n_slots = len(init_tokens) if init_tokens else self.n_ctx
        self._takes_deep = class_token_position == "end" and not class_specific
        words = tower.token_embedding.weight[init_tokens].detach().float() if init_tokens else None
        initial = None if words is None else words[: self.n_ctx]
        fixed = None if words is None or n_slots == self.n_ctx else words[self.n_ctx :]
        self.register_buffer("_initial_context", initial, persistent=False)
        self.register_buffer("_fixed_words", fixed, persistent=False)
        self._lay_out(classnames, n_slots, class_token_position)

    def initial_context(self) -> Tensor:
        """A fresh start for learning.

        Returns:
            (n_ctx, D): the embedding of ctx_init, or vectors drawn from N(0, 0.02^2) as in CoOp. With
            class_specific=True (C, n_ctx, D): the same ctx_init for each class, or independent draws.
        """
        shape: tuple[int, ...] = (self.n_ctx, self.ctx_dim)
        if self.class_specific:
            shape = (self.n_cls, *shape)
        if self._initial_context is not None:
            return self._initial_context.expand(shape).clone()
        return PROMPT_STD * torch.randn(shape, device=self.ln_final.weight.device)

    def initial_deep(self, depth: int) -> Tensor:
        """A fresh start of the deep contexts of layers 2 to `depth`, drawn from N(0, 0.02^2): (depth - 1, n_ctx, D).

        Raises:
            UserError: the tower has fewer layers.
        """
        check_depth(depth, self.n_layers, "text tower")
        return PROMPT_STD * torch.randn(depth - 1, self.n_ctx, self.ctx_dim, device=self.ln_final.weight.device)

    def forward(self, ctx: Tensor, deep: Sequence[Tensor] | Tensor = ()) -> Tensor:
        """Encode the prompts of all classes.

        Args:
            ctx: (n_ctx, D) or (B, n_ctx, D), contexts shared by all classes; with class_specific=True (C, n_ctx, D).
            deep: deep contexts (n_ctx, D) of layers 2, 3, ..., as a sequence or as one tensor. In each of these layers
                they take the places of what the layer before made of the context vectors, in the prompts of all
                classes and contexts alike (Khattak et al., CVPR 2023, Sec. 3.2.1). Only where the context stands in
                front of the class name and is shared by the classes.

        Returns:
            text features, L2-normalised unless asked for otherwise: (C, E) for (n_ctx, D) and for class_specific,
            (B, C, E) for (B, n_ctx, D).

        Raises:
            ValueError: ctx or deep has another shape, or deep comes with contexts that it is not meant for.
            UserError: deep contexts for more layers than the tower has.
        """
        context = (self.n_ctx, self.ctx_dim)
        accepted = [(self.n_cls, *context)] if self.class_specific else [context, ("B", *context)]
        shape = ctx.shape if self.class_specific or ctx.dim() != 3 else ("B", *ctx.shape[1:])
        if tuple(shape) not in accepted:
            raise ValueError(f"contexts have shape {tuple(ctx.shape)}; accepted: {' or '.join(map(str, accepted))}")

        deep = self._accepted_deep(deep)
        ctx = ctx.to(self.tower.dtype)
        if self._fixed_words is not None:
            fixed = self._fixed_words.to(ctx.dtype).expand(*ctx.shape[:-2], -1, -1)
            ctx = torch.cat([ctx, fixed], dim=-2)
        return self._encode_all(ctx, deep)

    def _encode_all(self, ctx, deep):
        """Features of contexts with all their slots, in as many chunks as the memory takes; shapes as of `forward`."""
        tokens = self._tokens_at_a_time(ctx, deep)
        if self.class_specific:
            return self._encode(ctx, deep, self._packs(tokens))[0]
        if ctx.dim() == 2:
            return self._encode(ctx.unsqueeze(0), deep, self._packs(tokens))[0]

        contexts_at_a_time = max(1, tokens // (self._n_tokens + self.n_shared))
        packs = self._packs(tokens // contexts_at_a_time - self.n_shared)
        chunks = ctx.split(contexts_at_a_time)
        return torch.cat([self._encode(chunk, deep, packs, recompute=len(chunks) > 1) for chunk in chunks])

    def _accepted_deep(self, deep):
        """Deep contexts as a list, in the tower's precision, or the error that says what is wrong with them."""
        context = (self.n_ctx, self.ctx_dim)
        shapes = [tuple(vectors.shape) for vectors in deep]
        if any(shape != context for shape in shapes):
            raise ValueError(f"deep contexts have shapes {shapes}; accepted: {context} for each layer from the second")
        if shapes and not self._takes_deep:
            raise ValueError("deep contexts need class_token_position='end' and contexts that are not class-specific")
        check_depth(1 + len(shapes), self.n_layers, "text tower")
        return [vectors.to(self.tower.dtype) for vectors in deep]

    # ---- construction ----

    def _lay_out(self, classnames, n_slots, class_token_position):
        """Make what the prompts are encoded from: the packed row of tails, and [SOS] once and for all."""
        tower = self.tower
        if not tower.can_be_cut:
            raise ValueError(
                "this text tower looks at all positions of a prompt; use full_prompt_encoder.prompt_encoder"
            )
        before = {"end": n_slots, "middle": n_slots // 2, "front": 0}[class_token_position]
        self.n_shared = 0 if self.class_specific else before
        length = tower.context_length
        tails = prompt_tails(classnames, n_slots, class_token_position, self.n_shared, length, tower.tokenizer)
        self._pack_tails(tails)
        self._check_memory(self._groups[-1].length + self.n_shared)

        embedding, position = tower.token_embedding.weight, tower.positional_embedding
        prefix_position = position[1 : 1 + self.n_shared].detach().to(tower.dtype)
        self.register_buffer("_prefix_position", prefix_position, persistent=False)
        with torch.no_grad():
            sos = (embedding[tower.tokenizer.before[0]] + position[0]).to(tower.dtype).view(1, 1, -1)
            keys, values = self._prefix_keys_values(sos, None)
        self.register_buffer("_sos", sos, persistent=False)
        self.register_buffer("_row_mask", self._mask_of_row(), persistent=False)
        self.register_buffer("_sos_keys", torch.stack(keys), persistent=False)
        self.register_buffer("_sos_values", torch.stack(values), persistent=False)

    def _pack_tails(self, tails):
        """Lay the tails out in one packed row, ordered by length, with their words' embeddings and positions."""
        order = sorted(range(self.n_cls), key=lambda c: len(tails[c]))
        lengths = [len(tails[c]) for c in order]
        self._groups = [LengthGroup(len(list(run)), length) for length, run in groupby(lengths)]
        self._n_tokens = sum(lengths)

        token_ids: list[int] = []
        positions: list[int] = []
        slot_at, slot_rows, slot_classes = [], [], []
        for c in order:
            for offset, entry in enumerate(tails[c]):
                if isinstance(entry, Slot):
                    slot_at.append(len(token_ids))
                    slot_rows.append(entry.row)
                    slot_classes.append(c)
                token_ids.append(0 if isinstance(entry, Slot) else entry)
                positions.append(1 + self.n_shared + offset)

        with torch.no_grad():
            words = self.tower.token_embedding.weight[token_ids].clone()
            words[slot_at] = 0
            tail = (words + self.tower.positional_embedding[positions]).to(self.tower.dtype)
        device = tail.device
        self.register_buffer("_tail", tail, persistent=False)  # (T, D); slots hold their position only
        for name, values in (("_slot_at", slot_at), ("_slot_rows", slot_rows), ("_slot_classes", slot_classes)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.long, device=device), persistent=False)
        self.register_buffer("_class_order", torch.argsort(torch.tensor(order, device=device)), persistent=False)

    def _mask_of_row(self):
        """What [SOS], the shared vectors and all tails, T tokens, see of each other: (T, T) of 0 and -inf.

        None where they are too many for one row.
        """
        prefix = 1 + self.n_shared
        n_tokens = prefix + self._n_tokens
        if n_tokens > ROW_TOKENS:
            return None
        lengths = _tail_lengths(self._groups)
        classes = torch.tensor([-1] * prefix + [c for c, length in enumerate(lengths) for _ in range(length)])
        seen = ((classes[:, None] == classes) | (classes == -1)).tril()
        return torch.zeros(n_tokens, n_tokens).masked_fill(~seen, float("-inf")).to(self._tail.device)

    def _bytes_per_token(self, with_gradients):
        element = self.tower.dtype.itemsize
        if with_gradients:
            return TRAINING_WIDTHS * self.ctx_dim * element * self.n_layers
        return INFERENCE_WIDTHS * self.ctx_dim * element

    def _check_memory(self, longest):
        """Raise UserError where the budget is too small for a prompt of so many tokens."""
        smallest_mb = -(-longest * self._bytes_per_token(with_gradients=True) // 2**20)
        if self.memory_mb < smallest_mb:
            raise UserError(
                f"A memory budget of {self.memory_mb} MB is too small for one prompt; the smallest that works here is "
                f"{smallest_mb} MB (TEST.MEMORY_MB)."
            )

    # ---- chunks ----

    def _tokens_at_a_time(self, ctx, deep=()):
        with_gradients = learns(ctx, deep)
        tokens = self.memory_mb * 2**20 // self._bytes_per_token(with_gradients)
        if not with_gradients and ctx.device.type == "cpu":
            tokens = min(tokens, CPU_TOKENS)
        return tokens

    def _packs(self, max_tokens):
        """Cut the packed row into packs of at most max_tokens tokens (at least one class each)."""
        packs: list[Pack] = []
        groups: list[LengthGroup] = []
        used, token, cls = 0, 0, 0

        def close():
            nonlocal groups, used, token, cls
            if groups:
                packs.append(Pack(token, cls, tuple(groups)))
                token, cls = token + packs[-1].n_tokens, cls + packs[-1].n_cls
                groups, used = [], 0

        for group in self._groups:
            left = group.n_cls
            while left:
                fitting = min(left, (max_tokens - used) // group.length)
                if fitting < 1:
                    if groups:
                        close()
                        continue
                    fitting = 1
                groups.append(LengthGroup(fitting, group.length))
                used += fitting * group.length
                left -= fitting
        close()
        return packs

    # ---- the tower ----

    def _encode(self, ctx, deep, packs, recompute=False):
        """(B, slots, D) shared contexts or (C, slots, D) class-specific ones -> (B or 1, C, E).

        What does not fit into the budget at once (several packs, or `recompute`: one of several chunks of contexts)
        is encoded again in the backward pass instead of being kept for it.
        """
        recompute = (recompute or len(packs) > 1) and learns(ctx, deep)

        def run(encode, *args):
            return checkpoint(encode, *args, use_reentrant=False) if recompute else encode(*args)

        if self._row_mask is not None and len(packs) == 1:
            features = run(self._encode_row, ctx, deep, *packs)
        else:
            keys, values = run(self._shared_prefix, ctx, deep)
            features = [run(self._encode_pack, ctx, keys, values, pack) for pack in packs]
            features = torch.cat(features, dim=1) if len(features) > 1 else features[0]
        return features[:, self._class_order]

    def _encode_row(self, ctx, deep, pack):
        """Text features of all classes, which are one pack, from one masked row: (B or 1, C, E)."""
        row_mask = self._row_mask
        assert row_mask is not None  # or there were no such row
        tails = self._tail_input(ctx, pack)
        parts = [self._sos.expand(len(tails), -1, -1), tails]
        if self.n_shared:
            parts.insert(1, ctx[:, : self.n_shared] + self._prefix_position)
        eos = _eos_positions(pack, tails.device) + 1 + self.n_shared

        def attend(layer, q, k, v, eos_only):
            mask = row_mask[eos] if eos_only else row_mask
            return _masked_attention(q, k, v, mask)

        return self._features(torch.cat(parts, dim=1), eos, attend, deep)

    def _shared_prefix(self, ctx, deep):
        """Keys and values of [SOS] and the shared vectors, layer by layer: lists of (B or 1, heads, P, D / heads)."""
        if self.n_shared == 0:
            return list(self._sos_keys), list(self._sos_values)
        x = ctx[:, : self.n_shared] + self._prefix_position
        past = list(zip(self._sos_keys, self._sos_values, strict=True))
        return self._prefix_keys_values(x, past, deep)

    def _prefix_keys_values(self, x, past, deep=()):
        """Run a prefix x (B, P, D) behind the past keys and values of each layer (None: behind nothing).

        Args:
            deep: what stands in the first places of x from the second layer on, as many layers as there are.
        """
        batch, keys, values = x.shape[0], [], []
        for layer, block in enumerate(self.blocks):
            if 0 < layer <= len(deep):
                x = torch.cat([deep[layer - 1].expand(batch, -1, -1), x], dim=1)
            normed = layer_norm(x, block.ln_1)
            k, v = project(normed, block, first=1)
            if past is not None:
                past_k, past_v = past[layer]
                k = torch.cat([past_k.expand(batch, -1, -1, -1), k], dim=2)
                v = torch.cat([past_v.expand(batch, -1, -1, -1), v], dim=2)
            keys.append(k)
            values.append(v)
            if layer == self.n_layers - 1:  # of the last layer only keys and values are ever looked at
                break
            replaced = self.n_ctx if layer < len(deep) else 0
            x = x[:, replaced:]
            if x.shape[1]:
                (q,) = project(normed[:, replaced:], block, last=1)
                mask = _causal_mask(q.shape[2], k.shape[2], q)
                x = after_attention(x, _masked_attention(q, k, v, mask), block)
        return keys, values

    def _encode_pack(self, ctx, keys, values, pack):
        """Text features of one pack's classes: (B or 1, classes of the pack, E)."""
        x = self._tail_input(ctx, pack)

        def attend(layer, q, k, v, eos_only):
            return self._attend(q, k, v, keys[layer], values[layer], pack.groups, eos_only)

        return self._features(x, _eos_positions(pack, x.device), attend)

    def _features(self, x, eos, attend, deep=()):
        """Run all layers on tokens (B or 1, T, D), the last one at the classes' EOS alone: (B or 1, classes, E).

        Args:
            attend: called with the layer's number, q, k, v, and whether q is that of the positions `eos` alone.
            deep: deep contexts, where x has the context vectors in it, behind [SOS].
        """
        for layer, block in enumerate(self.blocks[:-1]):
            x = self._with_deep(x, layer, deep)
            q, k, v = project(layer_norm(x, block.ln_1), block)
            x = after_attention(x, attend(layer, q, k, v, False), block)

        x = self._with_deep(x, self.n_layers - 1, deep)
        block = self.blocks[-1]
        normed = layer_norm(x, block.ln_1)
        k, v = project(normed, block, first=1)
        (q,) = project(normed[:, eos], block, last=1)
        x = after_attention(x[:, eos], attend(-1, q, k, v, True), block)
        return self._text_features(x)

    def _text_features(self, x):
        """Text features (..., E) of what the last layer made of the positions that they are read at, (..., D)."""
        features = self.tower.project(layer_norm(x, self.ln_final))
        return features / features.norm(dim=-1, keepdim=True) if self.normalised else features

    def _with_deep(self, x, layer, deep):
        """The input (B, T, D) of a layer with its deep contexts, if it has any, in the places behind [SOS]."""
        if not 0 < layer <= len(deep):
            return x
        return torch.cat([x[:, :1], deep[layer - 1].expand(len(x), -1, -1), x[:, 1 + self.n_ctx :]], dim=1)

    def _tail_input(self, ctx, pack):
        """Embeddings and positions of a pack's tokens, context vectors filled in: (B or 1, T, D)."""
        here = slice(pack.first_token, pack.first_token + pack.n_tokens)
        tail = self._tail[here]
        batch = 1 if self.class_specific else ctx.shape[0]
        tail = tail.expand(batch, *tail.shape)
        inside = (self._slot_at >= here.start) & (self._slot_at < here.stop)
        if self._slot_at.numel() == 0:
            return tail
        at, rows, classes = self._slot_at[inside] - here.start, self._slot_rows[inside], self._slot_classes[inside]
        vectors = ctx[classes, rows].unsqueeze(0) if self.class_specific else ctx[:, rows]
        return tail.index_add(1, at, vectors)

    def _attend(self, q, k, v, past_k, past_v, groups, eos_only=False):
        """Causal attention of each tail to the shared prefix and to itself.

        Args:
            q: (B, heads, T, d), or with eos_only (B, heads, C, d).
            k, v: (B, heads, T, d), T tokens as `groups` lays them out.
            past_k, past_v: (B or 1, heads, P, d).

        Returns:
            (B, T or C, heads * d).
        """
        batch, heads, _, d = k.shape
        q = q * d**-0.5
        # The prefix is the same for all tails of a context: one product for all of them.
        to_past, n_past = q @ past_k.transpose(-1, -2), past_k.shape[2]
        attended, at_q, at_k = [], 0, 0
        for group in groups:
            n, length = group.n_cls, group.length
            queries = 1 if eos_only else length
            here_q, here_k = slice(at_q, at_q + n * queries), slice(at_k, at_k + n * length)
            at_q, at_k = here_q.stop, here_k.stop
            own_q = q[:, :, here_q].reshape(batch, heads, n, queries, d)
            own_k = k[:, :, here_k].reshape(batch, heads, n, length, d)
            own_v = v[:, :, here_k].reshape(batch, heads, n, length, d)
            scores = own_q @ own_k.transpose(-1, -2)
            if not eos_only:
                scores = scores + _causal_mask(length, length, scores)
            past_scores = to_past[:, :, here_q].reshape(batch, heads, n, queries, n_past)
            weights = torch.cat([past_scores, scores], dim=-1).softmax(dim=-1).to(v.dtype)
            out = weights[..., n_past:] @ own_v
            from_past = weights[..., :n_past].reshape(batch, heads, n * queries, n_past) @ past_v
            out = out + from_past.view_as(out)
            attended.append(out.flatten(2, 3))
        joined = torch.cat(attended, dim=2) if len(attended) > 1 else attended[0]
        return joined.transpose(1, 2).flatten(2)


def _number_of_vectors(init_tokens, ctx_init, n_ctx, n_learned):
    """How many context vectors a prompt has that starts from tokens (None: from n_ctx random vectors)."""
    if init_tokens and n_learned is not None and not 1 <= n_learned <= len(init_tokens):
        raise UserError(
            f"N_CTX is {n_learned}, but CTX_INIT {ctx_init!r} has {len(init_tokens)} tokens; accepted: 1 to "
            f'{len(init_tokens)}, or CTX_INIT "" for a random start.'
        )
    number = (n_learned or len(init_tokens)) if init_tokens else n_ctx
    if number < 1:
        raise UserError(f"A prompt needs at least one context vector; N_CTX is {number}.")
    return number


def learns(ctx: Tensor, deep: Sequence[Tensor]) -> bool:
    """Whether gradients flow to a context or to deep ones."""
    return torch.is_grad_enabled() and any(vectors.requires_grad for vectors in (ctx, *deep))


def _tail_lengths(groups):
    """The number of tokens of each class in some groups."""
    return [group.length for group in groups for _ in range(group.n_cls)]


def _eos_positions(pack, device):
    """Where each class of a pack has its EOS, counted from the pack's first token."""
    return torch.tensor(_tail_lengths(pack.groups), device=device).cumsum(0) - 1


def _causal_mask(n_queries, n_keys, like):
    """0 and -inf by which the last query sees all keys, and each one before it one key less: (n_queries, n_keys)."""
    mask = torch.full((n_queries, n_keys), float("-inf"), dtype=like.dtype, device=like.device)
    return mask.triu(1 + n_keys - n_queries)


def _masked_attention(q, k, v, mask):
    """Attention of q (B, heads, Q, d) to k, v (B, heads, K, d) under a mask (Q, K): (B, Q, heads * d)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + mask
    return (scores.softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)
