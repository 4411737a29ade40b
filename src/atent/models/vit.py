"""Vision transformers (Dosovitskiy et al. 2021), for small images and in the layout of the published ViT-B/16."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from atent.models.registry import model


class PatchEmbed(nn.Module):
    """A token for each patch: (n, c, h, w) to (n, tokens, width), row by row."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class Attention(nn.Module):
    """Self-attention with several heads: (n, tokens, width) to the same shape."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.drop = _dropout(dropout)

    @torch.no_grad()
    def start(self) -> None:
        """Initialise queries, keys and values, three matrices in one, each by its own size."""
        for matrix in self.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(matrix)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind()
        # The fused kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            mixed = scaled_dot_product_attention(q, k, v)
        out: Tensor = self.drop(self.proj(mixed.transpose(1, 2).reshape(n, tokens, width)))
        return out


class Mlp(nn.Module):
    """Linear, GELU, linear, on each token."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.drop1 = _dropout(dropout)
        self.fc2 = nn.Linear(hidden, width)
        self.drop2 = _dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def _dropout(rate: float) -> nn.Module:
    # Identity, so that a search for dropout layers finds only active ones
    return nn.Dropout(rate) if rate else nn.Identity()


class VisionTransformer(nn.Module):
    """A vision transformer with a class token: (n, c, h, w) to (n, classes) logits.

    The names in the state dict are those of timm's ``VisionTransformer``. Layer norms add 1e-6 to the variance, the
    GELU is exact, and samples are independent. Without dropout, train mode and eval mode give the same bits. Attention
    is `torch.nn.functional.scaled_dot_product_attention` with its math kernel, so that second derivatives exist.

    Parameters
    ----------
    shape
        (c, h, w) of one input.
    classes
        Number of logits.
    patch
        Side of the square patches in pixels; it divides h and w.
    width
        Size of a token.
    depth
        Number of blocks.
    heads
        Number of attention heads; it divides ``width``.
    mlp_ratio
        Size of the hidden layer of each block as a multiple of ``width``.
    dropout
        Rate in [0, 1) after the sum with the position embeddings, and after each linear layer of a block except
        those of queries, keys and values.

    Raises
    ------
    ValueError
        If ``patch`` does not divide the sides of the image, or ``heads`` the width.

    References
    ----------
    Dosovitskiy et al. 2021, "An image is worth 16x16 words: transformers for image recognition at scale", ICLR, arXiv
    2010.11929.

    Examples
    --------
    >>> import torch
    >>> from atent.models.vit import VisionTransformer
    >>> net = VisionTransformer(shape=(3, 32, 32), classes=10, patch=4, width=32, depth=2, heads=4)
    >>> net(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, *, shape: tuple[int, int, int], classes: int, patch: int, width: int, depth: int, heads: int,
        mlp_ratio: int = 4, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        c, h, w = shape
        if isinstance(patch, bool) or not isinstance(patch, int) or patch < 1 or h % patch or w % patch:
            known = [side for side in range(1, min(h, w) + 1) if h % side == w % side == 0]
            raise ValueError(
                f"patch must divide the sides of the image, got {patch!r} for {h} x {w} pixels: use one of"
                f" {', '.join(map(str, known))}"
            )
        if width % heads:
            raise ValueError(f"heads must divide the width, got {heads} for a width of {width}")
        self.patch_embed = PatchEmbed(c, width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (h // patch) * (w // patch), width))
        self.pos_drop = _dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio * width, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        self._start()

    def _start(self) -> None:
        """Glorot uniform matrices, biases at zero, position embeddings from N(0, 0.02^2) and a class token of zeros."""
        nn.init.normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Attention):
                module.start()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed(x)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], 1)
        tokens = self.norm(self.blocks(self.pos_drop(tokens + self.pos_embed)))
        logits: Tensor = self.head(tokens[:, 0])
        return logits

    @staticmethod
    def published_state(state: Mapping[str, Any]) -> dict[str, Any] | None:
        """A state dict in the names of timm or of transformers (``ViTForImageClassification``) in the names of this
        class; None for any other."""
        if "vit.embeddings.cls_token" in state:
            return _from_transformers(state)
        return dict(state) if "cls_token" in state and "patch_embed.proj.weight" in state else None


# ---- names of other libraries ------------------------------------------------------------------------------

_TRANSFORMERS = (
    (r"vit\.embeddings\.cls_token", "cls_token"),
    (r"vit\.embeddings\.position_embeddings", "pos_embed"),
    (r"vit\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    # Files have encoder.layer.0, a model of transformers 5 in memory has layers.0.
    (r"vit\.(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"(blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
    (r"(blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
    (r"(blocks\.\d+)\.attention\.(?:output\.dense|o_proj)\.", r"\1.attn.proj."),
    (r"(blocks\.\d+)\.attention\.(?:attention\.)?(query|key|value)\.", r"\1.attn.\2."),
    (r"(blocks\.\d+)\.attention\.q_proj\.", r"\1.attn.query."),
    (r"(blocks\.\d+)\.attention\.k_proj\.", r"\1.attn.key."),
    (r"(blocks\.\d+)\.attention\.v_proj\.", r"\1.attn.value."),
    (r"(blocks\.\d+)\.(?:intermediate\.dense|mlp\.fc1)\.", r"\1.mlp.fc1."),
    (r"(blocks\.\d+)\.(?:output\.dense|mlp\.fc2)\.", r"\1.mlp.fc2."),
    (r"vit\.layernorm\.", "norm."),
    (r"classifier\.", "head."),
)


def _from_transformers(state: Mapping[str, Any]) -> dict[str, Any]:
    """The names of transformers as those of timm, with queries, keys and values in one matrix."""
    renamed: dict[str, Any] = {}
    for name, value in state.items():
        for pattern, ours in _TRANSFORMERS:
            name = re.sub(f"^{pattern}", ours, name)
        renamed[name] = value
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in renamed for part in parts):
            renamed[name.replace(".query.", ".qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


# ---- by name -----------------------------------------------------------------------------------------------


@model
def vit_tiny(
    *, classes: int = 10, shape: tuple[int, int, int] = (1, 28, 28), patch: int = 4, dropout: float = 0.0
) -> VisionTransformer:
    """Vision transformer of the size of `digits_cnn`: width 32, 3 blocks, 4 heads, hidden layers of 128.

    (n, c, h, w) to (n, classes) logits; not a published network. ``patch`` divides h and w, else ValueError: 4 or 7 for
    28 x 28 images, 4 for 32 x 32, 2 for 8 x 8; ``dropout`` is in [0, 1). 40,682 parameters for (1, 28, 28), 10 classes
    and patches of 4.
    """
    return VisionTransformer(
        shape=shape, classes=classes, patch=patch, width=32, depth=3, heads=4, dropout=dropout
    )  # fmt: skip


@model
def vit_small(
    *, classes: int = 10, shape: tuple[int, int, int] = (1, 28, 28), patch: int = 4, dropout: float = 0.0
) -> VisionTransformer:
    """Vision transformer of the size of `small_cnn`: width 80, 4 blocks, 5 heads, hidden layers of 320.

    Otherwise as `vit_tiny`. 317,770 parameters for (1, 28, 28), 10 classes and patches of 4.
    """
    return VisionTransformer(
        shape=shape, classes=classes, patch=patch, width=80, depth=4, heads=5, dropout=dropout
    )  # fmt: skip


@model
def vit_b16(
    *, classes: int = 10, shape: tuple[int, int, int] = (3, 224, 224), patch: int = 16, dropout: float = 0.0
) -> VisionTransformer:
    """ViT-B/16 of Dosovitskiy et al. 2021: width 768, 12 blocks, 12 heads, hidden layers of 3,072.

    Otherwise as `vit_tiny`. 85,806,346 parameters for (3, 224, 224) and 10 classes, 86,567,656 for 1000. `load_weights`
    takes files in the layout of timm (``vit_base_patch16_224``) and of transformers (``google/vit-base-patch16-224``).
    They expect inputs normalised by a mean and a standard deviation of 0.5, see ``normalize`` of `build`. Layer norms
    of transformers add 1e-12 to the variance, those here 1e-6.
    """
    return VisionTransformer(
        shape=shape, classes=classes, patch=patch, width=768, depth=12, heads=12, dropout=dropout
    )  # fmt: skip
