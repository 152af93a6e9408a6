"""Encode images with a frozen CLIP ViT that has learned tokens next to the patches.

Shallow prompts are tokens of the input. Deep prompts replace them in later layers, so the outputs of the layer before
at these places are lost (Jia et al., ECCV 2022, Sec. 3.2). Three computations are therefore superfluous:

1. where the next layer has deep prompts, the prompts of a layer have keys and values, the same for all images, and
   nothing else;
2. before patches and class token have seen a prompt, they need no gradients: in the first layer, only attention does;
3. the output of the last layer is read at the class token, so its query, projection and MLP run for this token alone.

Prompts have no positions, so their place in the sequence does not matter: here they come last.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from clip.model import VisionTransformer
from torch import nn

from common.errors import UserError
from trainers.modules.transformer_block import PROMPT_STD, after_attention, check_depth, layer_norm, project


class PromptedViT(nn.Module):
    """The image tower of a frozen `clip.model.CLIP` with shallow and deep prompts, differentiable with respect to them.

    Attributes:
        width (W), n_layers.
    """

    def __init__(self, visual: nn.Module):
        super().__init__()
        if not isinstance(visual, VisionTransformer):
            raise UserError(
                f"The backbone's image tower is a {type(visual).__name__} ({type(visual).__module__}), but prompts in "
                "the image tower (VPT, MaPLe, PromptSRC) need a ViT of OpenAI's layout. Name another backbone, such as "
                "ViT-B/16, or use VP, which learns pixels."
            )
        self.visual = visual
        self.width = visual.conv1.out_channels
        self.n_layers = len(visual.transformer.resblocks)

    def initial_tokens(self, n_tokens: int) -> torch.Tensor:
        """A start for shallow prompts, from N(0, 0.02^2): (n, W)."""
        return PROMPT_STD * torch.randn(n_tokens, self.width, device=self.visual.proj.device)

    def initial_deep(self, depth: int, n_tokens: int) -> torch.Tensor:
        """A start for the deep prompts of layers 2 to `depth`, from N(0, 0.02^2): (depth - 1, n, W)."""
        check_depth(depth, self.n_layers, "image tower")
        return PROMPT_STD * torch.randn(depth - 1, n_tokens, self.width, device=self.visual.proj.device)

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, deep: Sequence[torch.Tensor] | torch.Tensor = ()
    ) -> torch.Tensor:
        """Features (B, E) of images, not normalised.

        Args:
            images: (B, 3, H, H) in the tower's resolution.
            tokens: (n, W) shallow prompts. They pass the layer norm before the first layer.
            deep: (n, W) for each of layers 2, 3, ...
        """
        # The last layer with own prompts keeps their outputs: from there on, they are tokens like all others.
        *seen, tokens = self._prompts(tokens, deep)
        blocks = list(self.visual.transformer.resblocks)
        x = self._image_tokens(images)
        for block, prompts in zip(blocks, seen, strict=False):
            x = _layer(x, block, prompts)
        x = torch.cat([x, tokens.expand(len(x), -1, -1)], dim=1)
        for block in blocks[len(seen) : -1]:
            x = _layer(x, block)
        return self._class_feature(x, blocks[-1])

    def _prompts(self, tokens, deep):
        """The prompts (1, n, W) of each layer that has any; raises ValueError for other shapes."""
        shapes = [tuple(vectors.shape) for vectors in deep]
        if tokens.dim() != 2 or tokens.shape[1] != self.width or any(shape != tokens.shape for shape in shapes):
            raise ValueError(
                f"prompts of the image tower have shapes {tuple(tokens.shape)} and, in its deeper layers, {shapes}; "
                f"accepted: ('n', {self.width}), the same in each layer"
            )
        check_depth(1 + len(shapes), self.n_layers, "image tower")
        dtype = self.visual.conv1.weight.dtype
        first = layer_norm(tokens.to(dtype), self.visual.ln_pre)
        return [vectors.to(dtype).unsqueeze(0) for vectors in (first, *deep)]

    def _image_tokens(self, images):
        """Class token and patches as the first layer gets them: (B, 1 + patches, W)."""
        visual, dtype = self.visual, self.visual.conv1.weight.dtype
        patches = visual.conv1(images.to(dtype)).to(dtype).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(dtype).expand(len(images), 1, -1)
        x = torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(dtype)
        return layer_norm(x, visual.ln_pre)

    def _class_feature(self, x, block):
        """Features (B, E) of the class token after the last layer, `block`."""
        normed = layer_norm(x, block.ln_1)
        k, v = project(normed, block, first=1)
        (q,) = project(normed[:, :1], block, last=1)
        x = after_attention(x[:, :1], _attention(q, k, v), block)
        return layer_norm(x[:, 0], self.visual.ln_post) @ self.visual.proj


def _layer(x, block, seen=None):
    """One layer on tokens (B, T, W), which also attend to prompts `seen` (1, n, W): (B, T, W)."""
    q, k, v = project(layer_norm(x, block.ln_1), block)
    if seen is not None:
        seen_k, seen_v = project(layer_norm(seen, block.ln_1), block, first=1).expand(-1, len(x), -1, -1, -1)
        k, v = torch.cat([k, seen_k], dim=2), torch.cat([v, seen_v], dim=2)
    return after_attention(x, _attention(q, k, v), block)


def _attention(q, k, v):
    """Attention without a mask, (B, heads, Q, d) to (B, heads, K, d): (B, Q, heads * d)."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
