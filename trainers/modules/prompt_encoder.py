"""Encode prompts with a frozen CLIP text tower, without the superfluous work of a causal tower.

A prompt is [SOS] v_1 .. v_n [class name] "." [EOS], then 60 or more positions of padding.

1. No token after EOS changes the text feature, which is read at EOS. So every prompt ends at its EOS.
2. All classes share [SOS] and the context vectors before the class name, the prefix. Its keys and values are computed
   once for each context; [SOS] is computed once for all contexts. The other tokens of a class are its tail, which
   attends to the prefix and to itself. Deep contexts replace outputs of context vectors, which are not computed.
3. The last layer's output is read at EOS, so its queries, projection and MLP run at EOS only.

The tails of all classes form one row without padding, in order of length: linear layers see one large matrix, and
attention runs once for each length. With few tokens, calls cost more than computation. Then the prefix and all tails
form one row, and a mask lets each class see the prefix and itself.
"""

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.errors import UserError
from trainers.modules.clip.text_tower import FIRST, LAST, TextTower
from trainers.modules.prompt_tokens import CLASS_TOKEN_POSITIONS, WORD, tokenize_prompts, tokenize_words
from trainers.modules.transformer_block import PROMPT_STD, after_attention, check_depth, layer_norm, project

# Measured memory of one token, in multiples of the width D.
INFERENCE_WIDTHS = 18  # without gradients
TRAINING_WIDTHS = 26  # in each layer, saved for the backward pass
MASKED_ROW_TOKENS = 128  # up to here, one masked row is faster (measured at widths 128 and 512)
CPU_TOKENS = 2048  # more tokens at a time are not faster on a CPU, and do not fit into its cache
CPU_MEMORY_MB = 2048
GPU_MEMORY_SHARE = 0.25  # of the device's memory


class PromptEncoder(nn.Module):
    """Encode the prompts of all classes, differentiably with respect to their contexts.

    The text features equal the features of CoOp's PromptLearner and TextEncoder, which run over all positions.

    Args:
        clip_model: a `clip.model.CLIP` or a TextTower. Its weights are shared and never changed.
        classnames: names of the C classes.
        n_ctx: number of context vectors; the number of tokens in `ctx_init` overrides it.
        ctx_init: first value of the context in words ("a photo of a"); "": random vectors.
        class_token_position: place of the class name: "end", "middle" or "front".
        class_specific: contexts are (C, n_ctx, D), one for each class.
        memory_mb: limit on the intermediate results of a forward and backward pass. More work runs in chunks, which
            training recomputes in the backward pass.
        n_learned: number of tokens of `ctx_init` that are learned; the others are fixed words after them. None: all.
        normalised: L2-normalise the text features.

    Attributes:
        n_ctx, n_cls (C), n_layers, ctx_dim (D).
    """

    # Buffers; tails are in order of length, T tokens in all.
    _initial_context: Tensor  # (n_ctx, D) embeddings of words, or (0, D)
    _fixed_words: Tensor  # (n, D)
    _sos: Tensor  # (1, 1, D)
    _sos_keys: Tensor  # (layers, 1, heads, 1, D / heads)
    _sos_values: Tensor
    _shared_position: Tensor  # (shared vectors, D)
    _tails: Tensor  # (T, D) embeddings with positions, in place of context vectors only the positions
    _vector_at: Tensor  # (C, context vectors in a tail): their places in the row of tails
    _eos_at: Tensor  # (C,)
    _by_length: Tensor  # (C,) class numbers in order of length
    _by_class: Tensor  # the inverse
    _row_mask: Any  # a Tensor, or None

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
            accepted = ", ".join(CLASS_TOKEN_POSITIONS)
            raise UserError(f"CLASS_TOKEN_POSITION is {class_token_position!r}. Set it to one of {accepted}.")
        self.tower = tower = TextTower.of(clip_model)
        self.blocks, self.ln_final, self.n_layers = tower.blocks, tower.ln_final, len(tower.blocks)
        self.n_cls, self.ctx_dim = len(classnames), tower.width
        self.class_specific, self.memory_mb, self.normalised = class_specific, memory_mb, normalised
        self._takes_deep = class_token_position == "end" and not class_specific

        words = tokenize_words(ctx_init, tower.tokenizer) if ctx_init else []
        self.n_ctx = (n_learned or len(words)) if words else n_ctx
        if self.n_ctx < 1 or (words and self.n_ctx > len(words)):
            most = f"1 to {len(words)}, the number of tokens of CTX_INIT {ctx_init!r}" if words else "1 or more"
            raise UserError(f"N_CTX is {self.n_ctx}. Set it to {most}.")
        embedded = tower.token_embedding.weight[words].detach().float()
        self._store("initial_context", embedded[: self.n_ctx])
        self._store("fixed_words", embedded[self.n_ctx :])
        self._lay_out(classnames, len(words) or self.n_ctx, class_token_position)

    def initial_context(self) -> Tensor:
        """First value of the context: the embedding of `ctx_init`, or vectors from N(0, 0.02^2) as in CoOp.

        (n_ctx, D), or (C, n_ctx, D) if class-specific.
        """
        context = (self.n_ctx, self.ctx_dim)
        shape = (self.n_cls, *context) if self.class_specific else context
        if len(self._initial_context):
            return self._initial_context.expand(shape).clone()
        return PROMPT_STD * torch.randn(shape, device=self.ln_final.weight.device)

    def initial_deep(self, depth: int) -> Tensor:
        """First values of the deep contexts of layers 2 to `depth`, from N(0, 0.02^2): (depth - 1, n_ctx, D)."""
        check_depth(depth, self.n_layers, "text tower")
        return PROMPT_STD * torch.randn(depth - 1, self.n_ctx, self.ctx_dim, device=self.ln_final.weight.device)

    def forward(self, ctx: Tensor, deep: Sequence[Tensor] | Tensor = ()) -> Tensor:
        """Encode the prompts of all classes.

        Args:
            ctx: (n_ctx, D) or (B, n_ctx, D), shared by all classes; if class-specific (C, n_ctx, D).
            deep: (n_ctx, D) for each of layers 2, 3, ... The layer's input has them in place of the outputs of the
                context vectors (Khattak et al., CVPR 2023, Sec. 3.2.1). Contexts must be shared and before the class
                name.

        Returns:
            (C, E); of B contexts (B, C, E).
        """
        context, dtype = (self.n_ctx, self.ctx_dim), self.tower.dtype
        batch = (self.n_cls if self.class_specific else len(ctx),)
        accepted = [(*batch, *context)] if self.class_specific else [context, (*batch, *context)]
        if tuple(ctx.shape) not in accepted or any(vectors.shape != context for vectors in deep):
            shapes = [tuple(vectors.shape) for vectors in (ctx, *deep)]
            raise ValueError(f"contexts have shapes {shapes}; accepted: {accepted[-1]}, and {context} in deeper layers")
        if len(deep) and not self._takes_deep:
            raise ValueError("deep contexts need class_token_position='end' and contexts that are not class-specific")
        check_depth(1 + len(deep), self.n_layers, "text tower")
        ctx, deep = ctx.to(dtype), [vectors.to(dtype) for vectors in deep]
        if len(self._fixed_words):
            fixed = self._fixed_words.to(dtype).expand(*ctx.shape[:-2], -1, -1)
            ctx = torch.cat([ctx, fixed], dim=-2)
        features = self._encode_in_chunks(ctx if ctx.dim() == 3 else ctx.unsqueeze(0), deep)
        return features[0] if ctx.dim() == 2 or self.class_specific else features

    # ---- construction ----

    def _lay_out(self, classnames, n_vectors, class_token_position):
        """Make the row of tails, and the keys and values of [SOS]."""
        tower = self.tower
        if not tower.can_be_cut:
            raise ValueError("this text tower reads all positions of a prompt; use build_prompt_encoder")
        before = {"end": n_vectors, "middle": n_vectors // 2, "front": 0}[class_token_position]
        self._n_shared = 0 if self.class_specific else before
        start = 1 + self._n_shared
        prompts = tokenize_prompts(classnames, n_vectors, class_token_position, tower.context_length, tower.tokenizer)
        order = sorted(range(self.n_cls), key=lambda c: len(prompts[c].tokens))
        self._lengths = [len(prompts[c].tokens) - start for c in order]
        self._starts = [0, *accumulate(self._lengths)]
        self._check_memory(self._lengths[-1] + self._n_shared)

        tokens = [token for c in order for token in prompts[c].tokens[start:]]
        places = [place for c in order for place in range(start, len(prompts[c].tokens))]
        vectors = [vector for c in order for vector in prompts[c].vectors[start:]]
        vector_at = [place for place, vector in enumerate(vectors) if vector != WORD]
        embedding, position = tower.token_embedding.weight.detach(), tower.positional_embedding.detach()
        words = embedding[tokens]
        words[vector_at] = 0
        self._store("tails", (words + position[places]).to(tower.dtype))
        self._store("vector_at", torch.tensor(vector_at, dtype=torch.long).view(self.n_cls, n_vectors - self._n_shared))
        self._store("eos_at", torch.tensor(self._starts[1:]) - 1)
        self._store("by_length", torch.tensor(order))
        self._store("by_class", torch.tensor(order).argsort())
        self._store("shared_position", position[1:start].to(tower.dtype))
        self._store("row_mask", self._mask_of_row())
        self._store("sos", (embedding[tower.tokenizer.before[0]] + position[0]).to(tower.dtype).view(1, 1, -1))
        with torch.no_grad():
            keys, values = self._encode_sos()
        self._store("sos_keys", keys)
        self._store("sos_values", values)

    def _store(self, name, tensor):
        device = self.tower.token_embedding.weight.device
        self.register_buffer(f"_{name}", None if tensor is None else tensor.to(device), persistent=False)

    def _mask_of_row(self):
        """(T, T) of 0 and -inf for [SOS], shared vectors and all tails as one row; None for too many tokens."""
        n_prefix = 1 + self._n_shared
        if n_prefix + self._starts[-1] > MASKED_ROW_TOKENS:
            return None
        tails = [c for c, length in enumerate(self._lengths) for _ in range(length)]
        classes = torch.tensor([-1] * n_prefix + tails)
        # A token sees the prefix (-1) and its own class, and of these the tokens before it.
        seen = ((classes[:, None] == classes) | (classes == -1)).tril()
        return torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))

    def _encode_sos(self):
        """Keys and values of [SOS] in all layers. It sees itself alone, so attention returns its value."""
        x, keys, values = self._sos, [], []
        for block in self.blocks:
            k, v = project(layer_norm(x, block.ln_1), block, first=1)
            keys.append(k)
            values.append(v)
            x = after_attention(x, v.transpose(1, 2).flatten(2), block)
        return torch.stack(keys), torch.stack(values)

    # ---- chunks ----

    def _bytes_per_token(self, learning):
        widths = TRAINING_WIDTHS * self.n_layers if learning else INFERENCE_WIDTHS
        return widths * self.ctx_dim * self.tower.dtype.itemsize

    def _check_memory(self, n_tokens):
        """Raise UserError if the memory limit is too small for a prompt of n_tokens."""
        smallest_mb = -(-n_tokens * self._bytes_per_token(learning=True) // 2**20)
        if self.memory_mb < smallest_mb:
            raise UserError(
                f"TEST.MEMORY_MB {self.memory_mb}: too small for one prompt. Set it to {smallest_mb} or more."
            )

    def _tokens_at_a_time(self, learning, device):
        tokens = self.memory_mb * 2**20 // self._bytes_per_token(learning)
        return tokens if learning or device.type != "cpu" else min(tokens, CPU_TOKENS)

    def _encode_in_chunks(self, ctx, deep):
        """Features (B, C, E) of contexts (B, n, D); (1, C, E) of class-specific ones (C, n, D)."""
        learning = _requires_grad(ctx, deep)
        n_tokens, contexts = self._tokens_at_a_time(learning, ctx.device), (ctx,)
        if not self.class_specific:  # as many contexts as fit with all classes, else one context with some classes
            contexts_at_a_time = max(1, n_tokens // (self._starts[-1] + self._n_shared))
            n_tokens = n_tokens // contexts_at_a_time - self._n_shared
            contexts = ctx.split(contexts_at_a_time)
        classes = self._class_chunks(n_tokens)
        recompute = learning and len(contexts) * len(classes) > 1
        features = [self._encode(chunk, deep, classes, recompute) for chunk in contexts]
        return torch.cat(features) if len(features) > 1 else features[0]

    def _class_chunks(self, n_tokens):
        """Ranges of classes, in order of length, with tails of at most n_tokens (or one class)."""
        chunks, first = [], 0
        for c in range(1, self.n_cls + 1):
            if c == self.n_cls or self._starts[c + 1] - self._starts[first] > n_tokens:
                chunks.append(range(first, c))
                first = c
        return chunks

    def _encode(self, ctx, deep, class_chunks, recompute):
        def run(encode, *args):
            return checkpoint(encode, *args, use_reentrant=False) if recompute else encode(*args)

        if self._row_mask is not None and len(class_chunks) == 1:
            features = run(self._encode_row, ctx, deep, class_chunks[0])
        else:
            keys, values = run(self._encode_prefix, ctx, deep)
            parts = [run(self._encode_tails, ctx, keys, values, classes) for classes in class_chunks]
            features = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return features[:, self._by_class]

    # ---- the tower ----

    def _encode_row(self, ctx, deep, classes):
        """Text features of all classes from one masked row with [SOS] and the shared vectors."""
        tails = self._tail_inputs(ctx, classes)
        n, mask = len(tails), self._row_mask
        shared = ctx[:n, : self._n_shared] + self._shared_position
        eos = self._eos_at + 1 + self._n_shared

        def attend(layer, q, k, v, eos_only):
            return _attention(q, k, v, mask[eos] if eos_only else mask)

        return self._run_layers(torch.cat([self._sos.expand(n, -1, -1), shared, tails], dim=1), eos, attend, deep)

    def _encode_prefix(self, ctx, deep):
        """Keys and values of [SOS] and the shared vectors in each layer: lists of (B, heads, 1 + shared, D / heads)."""
        keys, values = list(self._sos_keys), list(self._sos_values)
        if self._n_shared == 0:
            return keys, values
        n, x = len(ctx), ctx[:, : self._n_shared] + self._shared_position
        for layer, block in enumerate(self.blocks):
            if 0 < layer <= len(deep):
                x = torch.cat([deep[layer - 1].expand(n, -1, -1), x], dim=1)
            normed = layer_norm(x, block.ln_1)
            k, v = project(normed, block, first=1)
            keys[layer] = k = torch.cat([keys[layer].expand(n, -1, -1, -1), k], dim=2)
            values[layer] = v = torch.cat([values[layer].expand(n, -1, -1, -1), v], dim=2)
            # The next layer's deep context replaces the first n_ctx outputs.
            n_replaced = self.n_ctx if layer < len(deep) else 0
            x = x[:, n_replaced:]
            if layer < self.n_layers - 1 and x.shape[1]:
                (q,) = project(normed[:, n_replaced:], block, last=1)
                x = after_attention(x, _attention(q, k, v, _causal_mask(q.shape[2], k.shape[2], q)), block)
        return keys, values

    def _encode_tails(self, ctx, keys, values, classes):
        """Text features of a range of classes from their tails: (B, classes, E)."""
        lengths = self._lengths[classes.start : classes.stop]
        by_length = [(length, len(list(group))) for length, group in groupby(lengths)]
        eos = self._eos_at[classes.start : classes.stop] - self._starts[classes.start]

        def attend(layer, q, k, v, eos_only):
            return _attend_to_prefix(q, k, v, keys[layer], values[layer], by_length, eos_only)

        return self._run_layers(self._tail_inputs(ctx, classes), eos, attend)

    def _tail_inputs(self, ctx, classes):
        """Embeddings with positions of the tails of a range of classes, context vectors filled in: (B, T, D)."""
        start = self._starts[classes.start]
        tails = self._tails[start : self._starts[classes.stop]]
        tails = tails.expand(1 if self.class_specific else len(ctx), *tails.shape)
        at = self._vector_at[classes.start : classes.stop] - start
        if not at.numel():
            return tails
        if self.class_specific:
            vectors = ctx[self._by_length[classes.start : classes.stop]].flatten(0, 1).unsqueeze(0)
        else:
            vectors = ctx[:, self._n_shared :].repeat(1, len(classes), 1)
        return tails.index_add(1, at.flatten(), vectors)

    def _run_layers(self, x, eos, attend, deep=()):
        """Run all layers on tokens x (B, T, D), the last one at positions `eos` (C,) alone, and project: (B, C, E).

        Args:
            attend: function of the layer's number, q, k, v, and whether q has the positions `eos` alone.
            deep: deep contexts, if the context vectors are at positions 1 to n_ctx of x.
        """
        for layer, block in enumerate(self.blocks):
            if 0 < layer <= len(deep):
                x = torch.cat([x[:, :1], deep[layer - 1].expand(len(x), -1, -1), x[:, 1 + self.n_ctx :]], dim=1)
            is_last = layer == self.n_layers - 1
            if is_last:
                normed = layer_norm(x, block.ln_1)
                k, v = project(normed, block, first=1)
                (q,) = project(normed[:, eos], block, last=1)
                x = x[:, eos]
            else:
                q, k, v = project(layer_norm(x, block.ln_1), block)
            x = after_attention(x, attend(layer, q, k, v, is_last), block)
        return self._text_features(x)

    def _text_features(self, x):
        features = self.tower.project(layer_norm(x, self.ln_final))
        return features / features.norm(dim=-1, keepdim=True) if self.normalised else features


class PaddedPromptEncoder(PromptEncoder):
    """A `PromptEncoder` that runs all positions of all prompts, with the last layer at the position that is read.

    For towers that are not causal or do not read features at EOS: prompts can neither end early nor share a prefix.
    """

    _tokens: Tensor  # (C, L)
    _vectors: Tensor  # (C, L) numbers of context vectors, or WORD
    _read_at: Tensor  # (C,)

    def _lay_out(self, classnames, n_vectors, class_token_position):
        tower, tokenizer, length = self.tower, self.tower.tokenizer, self.tower.context_length
        self._check_memory(length)
        prompts = tokenize_prompts(classnames, n_vectors, class_token_position, length, tokenizer)
        padding = [length - len(prompt.tokens) for prompt in prompts]
        eos = [len(prompt.tokens) - len(tokenizer.after) for prompt in prompts]
        read_at = {LAST: [length - 1] * self.n_cls, FIRST: [0] * self.n_cls}.get(tower.pool, eos)
        tokens = [prompt.tokens + [tokenizer.pad] * n for prompt, n in zip(prompts, padding, strict=True)]
        vectors = [prompt.vectors + [WORD] * n for prompt, n in zip(prompts, padding, strict=True)]
        for name, rows in (("tokens", tokens), ("vectors", vectors), ("read_at", read_at)):
            self._store(name, torch.tensor(rows))

    def _encode_in_chunks(self, ctx, deep):
        learning = _requires_grad(ctx, deep)
        # Prompt b * C + c has context b and class c.
        prompts = torch.arange(self.n_cls if self.class_specific else len(ctx) * self.n_cls, device=ctx.device)
        at_a_time = max(1, self._tokens_at_a_time(learning, ctx.device) // self.tower.context_length)
        chunks = prompts.split(at_a_time)
        if learning and len(chunks) > 1:
            features = [checkpoint(self._encode_prompts, ctx, deep, chunk, use_reentrant=False) for chunk in chunks]
        else:
            features = [self._encode_prompts(ctx, deep, chunk) for chunk in chunks]
        return torch.cat(features).view(-1, self.n_cls, features[0].shape[-1])

    def _encode_prompts(self, ctx, deep, prompts):
        """Text features (S, E) of prompts with these numbers (S,)."""
        tower, classes = self.tower, prompts % self.n_cls
        vectors, read_at = self._vectors[classes], self._read_at[classes]
        each = torch.arange(len(prompts), device=prompts.device)
        contexts = ctx[classes if self.class_specific else prompts // self.n_cls]
        # Embeddings of all classes at all positions would take too much memory.
        words = tower.token_embedding.weight[self._tokens[classes]].to(contexts.dtype)
        x = (_replace(words, contexts, vectors) + tower.positional_embedding).to(tower.dtype)
        for layer, block in enumerate(self.blocks):
            if 0 < layer <= len(deep):
                x = _replace(x, deep[layer - 1].expand(len(x), -1, -1), vectors)
            if layer == self.n_layers - 1:
                normed = layer_norm(x, block.ln_1)
                k, v = project(normed, block, first=1)
                (q,) = project(normed[each, read_at].unsqueeze(1), block, last=1)
                positions = torch.arange(k.shape[2], device=k.device)
                seen = (positions <= read_at[:, None])[:, None, None] if tower.causal else None
                attended, x = F.scaled_dot_product_attention(q, k, v, seen), x[each, read_at].unsqueeze(1)
            else:
                q, k, v = project(layer_norm(x, block.ln_1), block)
                attended = F.scaled_dot_product_attention(q, k, v, is_causal=tower.causal)
            x = after_attention(x, attended.transpose(1, 2).flatten(2), block)
        return self._text_features(x[:, 0])


def build_prompt_encoder(clip_model: Any, classnames: Sequence[str], **settings: Any) -> PromptEncoder:
    """The encoder for a text tower: a PromptEncoder, or a PaddedPromptEncoder if the tower needs all positions."""
    tower = TextTower.of(clip_model)
    return (PromptEncoder if tower.can_be_cut else PaddedPromptEncoder)(tower, classnames, **settings)


def default_memory_mb(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_MEMORY_MB
    return int(torch.cuda.get_device_properties(device).total_memory * GPU_MEMORY_SHARE) // 2**20


def _requires_grad(ctx, deep):
    return torch.is_grad_enabled() and any(vectors.requires_grad for vectors in (ctx, *deep))


def _replace(x, contexts, vectors):
    """x (S, L, D) with the context vectors (S, n, D) at the positions that have their numbers in `vectors` (S, L)."""
    n = contexts.shape[1]
    rows = vectors.clamp(0, n - 1).unsqueeze(-1).expand(-1, -1, x.shape[-1])
    # Fixed words have the numbers from n on in deeper layers, where they are not replaced.
    is_replaced = (vectors != WORD) & (vectors < n)
    return torch.where(is_replaced.unsqueeze(-1), contexts.gather(1, rows), x)


def _causal_mask(n_queries, n_keys, like):
    """(n_queries, n_keys) of 0 and -inf: the last query sees all keys, each one before it one key less."""
    mask = torch.full((n_queries, n_keys), float("-inf"), dtype=like.dtype, device=like.device)
    return mask.triu(1 + n_keys - n_queries)


def _attention(q, k, v, mask):
    """Attention of q (B, heads, Q, d) to k, v (B, heads, K, d) under a mask (Q, K): (B, Q, heads * d)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + mask
    return (scores.softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def _attend_to_prefix(q, k, v, prefix_k, prefix_v, by_length, eos_only):
    """Causal attention of each tail to the shared prefix and to itself.

    Args:
        q: (B, heads, T, d), with eos_only (B, heads, C, d).
        k, v: (B, heads, T, d) of tails in order of length.
        prefix_k, prefix_v: (B or 1, heads, P, d).
        by_length: (length, number of tails) of each length.

    Returns:
        (B, T or C, heads * d).
    """
    q = q * q.shape[-1] ** -0.5
    # The prefix is the same for all tails of a context, so one product serves all tails.
    prefix_scores, n_prefix = q @ prefix_k.transpose(-1, -2), prefix_k.shape[2]
    n_keys = [n * length for length, n in by_length]
    n_queries = [n for _, n in by_length] if eos_only else n_keys
    sizes = (n_queries, n_queries, n_keys, n_keys)
    parts = [x.split(size, dim=2) for x, size in zip((prefix_scores, q, k, v), sizes, strict=True)]
    attended = []
    for (length, n), *part in zip(by_length, *parts, strict=True):
        to_prefix, own_q, own_k, own_v = (x.unflatten(2, (n, -1)) for x in part)
        scores = own_q @ own_k.transpose(-1, -2)
        if not eos_only:
            scores = scores + _causal_mask(length, length, scores)
        weights = torch.cat([to_prefix, scores], dim=-1).softmax(dim=-1).to(v.dtype)
        from_prefix = weights[..., :n_prefix].flatten(2, 3) @ prefix_v
        attended.append((weights[..., n_prefix:] @ own_v).flatten(2, 3) + from_prefix)
    joined = torch.cat(attended, dim=2) if len(attended) > 1 else attended[0]
    return joined.transpose(1, 2).flatten(2)
