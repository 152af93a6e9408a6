"""Images -> features through a frozen CLIP ViT that has learned tokens beside the patches.

Shallow prompts are tokens of the input; deep ones take their places in the layers after it, so that what a layer makes
of the tokens before is lost there (Jia et al., ECCV 2022, Sec. 3.2). From this follows what need not be computed:

1. where the next layer has deep prompts, a layer's prompts are only looked at: they have keys and values, the same for
   all images, and nothing else;
2. patches and class token depend on nothing learned before they look at prompts: the first layer's queries, keys and
   values of them need no gradients;
3. the last layer's output is read at the class token only: its query, projection and MLP run for this token alone.

Where the prompts stand in the row does not matter, since they have no positions: here they come last.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from clip.model import VisionTransformer
from torch import nn

from common.errors import UserError
from trainers.modules.transformer_block import PROMPT_STD, after_attention, check_depth, layer_norm, project


class PromptedViT(nn.Module):
    """The image tower of a frozen CLIP with shallow and deep prompts.

    Equal to the tower written out with prompts in all layers, differentiable with respect to the prompts.

    Args:
        visual: the image tower of a `clip.model.CLIP`, used as it is (weights shared, never changed).

    Attributes:
        width (W), n_layers.

    Raises:
        UserError: the tower is no ViT.
    """

    def __init__(self, visual: nn.Module):
        super().__init__()
        if not isinstance(visual, VisionTransformer):
            raise UserError(
                f"The backbone's image tower is a {type(visual).__name__} ({type(visual).__module__}). Prompts in the "
                "image tower (VPT, MaPLe, PromptSRC) need a ViT of OpenAI's layout, such as that of ViT-B/16; "
                "the method that works with this backbone is VP, which learns pixels."
            )
        self.visual = visual
        self.width = visual.conv1.out_channels
        self.n_layers = len(visual.transformer.resblocks)

    def initial_tokens(self, n_tokens: int) -> torch.Tensor:
        """A fresh start of shallow prompts, drawn from N(0, 0.02^2): (n, W)."""
        return PROMPT_STD * torch.randn(n_tokens, self.width, device=self.visual.proj.device)

    def initial_deep(self, depth: int, n_tokens: int) -> torch.Tensor:
        """A fresh start of the deep prompts of layers 2 to `depth`, drawn from N(0, 0.02^2): (depth - 1, n, W).

        Raises:
            UserError: the tower has fewer layers.
        """
        check_depth(depth, self.n_layers, "image tower")
        return PROMPT_STD * torch.randn(depth - 1, n_tokens, self.width, device=self.visual.proj.device)

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, deep: Sequence[torch.Tensor] | torch.Tensor = ()
    ) -> torch.Tensor:
        """Encode images.

        Args:
            images: (B, 3, H, H), H pixels being the tower's own resolution.
            tokens: (n, W) shallow prompts. They get no positions, but pass the layer norm before the first layer.
            deep: deep prompts (n, W) of layers 2, 3, ..., as a sequence or as one tensor.

        Returns:
            features (B, E), not normalised.

        Raises:
            ValueError: tokens or deep has another shape.
            UserError: deep prompts for more layers than the tower has.
        """
        *seen, entering = self._prompts(tokens, deep)
        blocks = list(self.visual.transformer.resblocks)
        x = self._image_tokens(images)
        for block, prompts in zip(blocks, seen, strict=False):
            x = _layer(x, block, prompts)
        x = torch.cat([x, entering.expand(len(x), -1, -1)], dim=1)
        for block in blocks[len(seen) : -1]:
            x = _layer(x, block)
        return self._class_feature(x, blocks[-1])

    def _prompts(self, tokens, deep):
        """The prompts (1, n, W) of each layer that has any, or the error that says what is wrong with them."""
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
        """What the first layer sees of an image: class token and patches, (B, 1 + patches, W)."""
        visual, dtype = self.visual, self.visual.conv1.weight.dtype
        patches = visual.conv1(images.to(dtype)).to(dtype).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(dtype).expand(len(images), 1, -1)
        x = torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(dtype)
        return layer_norm(x, visual.ln_pre)

    def _class_feature(self, x, block):
        """Features (B, E) of the class token after the last layer, which is `block`."""
        normed = layer_norm(x, block.ln_1)
        k, v = project(normed, block, first=1)
        (q,) = project(normed[:, :1], block, last=1)
        x = after_attention(x[:, :1], _attention(q, k, v), block)
        return layer_norm(x[:, 0], self.visual.ln_post) @ self.visual.proj


def _layer(x, block, seen=None):
    """One layer on tokens (B, T, W), which also look at prompts (1, n, W), if given: (B, T, W)."""
    q, k, v = project(layer_norm(x, block.ln_1), block)
    if seen is not None:
        seen_k, seen_v = project(layer_norm(seen, block.ln_1), block, first=1).expand(-1, len(x), -1, -1, -1)
        k, v = torch.cat([k, seen_k], dim=2), torch.cat([v, seen_v], dim=2)
    return after_attention(x, _attention(q, k, v), block)


def _attention(q, k, v):
    """Attention without a mask, (B, heads, Q, d) to (B, heads, K, d): (B, Q, heads * d)."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
