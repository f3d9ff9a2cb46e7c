"""Refinement head: CAT-Seg's `Aggregator` with the dinov3.seg reading, MODEL_SPEC sections (e) and (f).

Split where classes couple, so that a runtime can feed it any number of them: `correlation` and the decoder act
on each class alone (feed them in chunks), `refine` lets classes see each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from export.models.class_attention import ClassLayer
from export.models.swin import SwinLayer


def correlation(features: Tensor, text: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cosine of every patch with every prompt.

    features (G*G, C) and text (K, P, C), neither needs unit norm -> (K, P, G, G).
    """
    features = F.normalize(features, dim=-1)
    text = F.normalize(text, dim=-1)
    cosines: Tensor = text @ features.T
    return cosines.reshape(*text.shape[:2], *grid)


class ConvRelu(nn.Sequential):
    """Guidance projection; a Sequential because the official key is `<name>.0`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU())


class AggregatorLayer(nn.Module):
    """One round of refinement: over space within each class, then over classes at each position."""

    def __init__(self, spatial: SwinLayer, classes: ClassLayer) -> None:
        super().__init__()
        self.swin_block = spatial
        self.attention = classes

    def forward(self, x: Tensor, guidance: Tensor, text_guidance: Tensor, present: Tensor) -> Tensor:
        x = self.attention(self.swin_block(x, guidance), text_guidance, present)
        return x


class DoubleConv(nn.Module):
    """[3x3 convolution, GroupNorm, ReLU] twice, on class maps with guidance maps beside them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        groups = out_channels // 16
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, out_channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        # A convolution of [x ; guidance] is the sum of two: the guidance one is done once, not per class.
        first, *others = self.double_conv
        assert isinstance(first, nn.Conv2d)
        split = x.shape[1]
        x = F.conv2d(x, first.weight[:, :split], padding=1) + F.conv2d(guidance, first.weight[:, split:], padding=1)
        for layer in others:
            x = layer(x)
        return x


class Up(nn.Module):
    """Doubles the resolution of every class map, guided by a map of the new resolution."""

    def __init__(self, in_channels: int, out_channels: int, guidance_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels - guidance_channels, 2, stride=2)
        self.conv = DoubleConv(in_channels, out_channels)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        x = self.conv(self.up(x), guidance)
        return x


class Aggregator(nn.Module):
    """All parameters of the head under their official names.

    Args:
        pad_len: CAT-Seg's fixed number of classes: fewer are filled up with padding tokens (here one weighted
            token, an exact rewrite), more are cut by `runtime.classes.select_classes` before `refine`. 0: off.
        attention_type: "linear" or "full" attention over classes.
    """

    def __init__(
        self,
        *,
        feature_resolution: Sequence[int],
        window_size: int,
        text_guidance_dim: int = 1024,
        text_guidance_proj_dim: int = 128,
        appearance_guidance_dim: int = 256,
        appearance_guidance_proj_dim: int = 128,
        decoder_dims: Sequence[int] = (64, 32),
        decoder_guidance_dims: Sequence[int] = (256, 128),
        decoder_guidance_proj_dims: Sequence[int] = (32, 16),
        num_layers: int = 2,
        nheads: int = 4,
        hidden_dim: int = 128,
        pooling_size: Sequence[int] = (2, 2),
        attention_type: str = "linear",
        prompt_channel: int = 2,
        pad_len: int = 256,
    ) -> None:
        super().__init__()
        self.pad_len = pad_len
        grid = (feature_resolution[0], feature_resolution[1])
        self.conv1 = nn.Conv2d(prompt_channel, hidden_dim, 7, padding=3)
        self.guidance_projection = ConvRelu(appearance_guidance_dim, appearance_guidance_proj_dim)
        self.text_guidance_projection = nn.Sequential(nn.Linear(text_guidance_dim, text_guidance_proj_dim), nn.ReLU())
        self.decoder_guidance_projection = nn.ModuleList(
            ConvRelu(d, p) for d, p in zip(decoder_guidance_dims, decoder_guidance_proj_dims, strict=True)
        )
        self.layers = nn.ModuleList(
            AggregatorLayer(
                SwinLayer(hidden_dim, appearance_guidance_proj_dim, nheads, grid, window_size),
                ClassLayer(
                    hidden_dim,
                    text_guidance_proj_dim,
                    nheads,
                    (pooling_size[0], pooling_size[1]),
                    attention_type,
                    pad_len,
                ),
            )
            for _ in range(num_layers)
        )
        self.decoder1 = Up(hidden_dim, decoder_dims[0], decoder_guidance_proj_dims[0])
        self.decoder2 = Up(decoder_dims[0], decoder_dims[1], decoder_guidance_proj_dims[1])
        self.head = nn.Conv2d(decoder_dims[1], 1, 3, padding=1)

    def refine(self, correlation: Tensor, guidance: Tensor, text: Tensor, present: Tensor) -> Tensor:
        """(K, P, G, G) cosines, (1, Cg, G, G) guidance, (K, P, C) text -> class features (K, hidden, G, G).

        present (K,): 1 for a class; 0 for one that only fills the batch up, which no other class sees.
        """
        x: Tensor = self.conv1(correlation)
        spatial_guidance = self.guidance_projection(guidance)
        text_guidance = self.text_guidance_projection(F.normalize(text.mean(dim=1), dim=-1))
        for layer in self.layers:
            x = layer(x, spatial_guidance, text_guidance, present)
        return x

    def decode(self, class_features: Tensor, guidance1: Tensor, guidance2: Tensor) -> Tensor:
        """(K, hidden, G, G) and guidance at 2G and 4G -> logits (K, 4G, 4G). Each class on its own."""
        x = self.decoder1(class_features, self.decoder_guidance_projection[0](guidance1))
        x = self.decoder2(x, self.decoder_guidance_projection[1](guidance2))
        logits: Tensor = self.head(x)[:, 0]
        return logits

    def prepare_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drops the shifted windows' mask: it belongs to the training grid and is rebuilt for ours."""
        return {key: value for key, value in state.items() if not key.endswith(".attn_mask")}


class Refinement(nn.Module):
    """Stage: the part of the head in which classes see each other."""

    def __init__(self, aggregator: Aggregator) -> None:
        super().__init__()
        self.aggregator = aggregator

    def forward(self, correlation: Tensor, guidance0: Tensor, text: Tensor, present: Tensor) -> Tensor:
        return self.aggregator.refine(correlation, guidance0, text, present)


class Decoder(nn.Module):
    """Stage: class features to logits, any chunk of classes at a time."""

    def __init__(self, aggregator: Aggregator) -> None:
        super().__init__()
        self.aggregator = aggregator

    def forward(self, class_features: Tensor, guidance1: Tensor, guidance2: Tensor) -> Tensor:
        return self.aggregator.decode(class_features, guidance1, guidance2)


class Correlation(nn.Module):
    """Stage: cosines between refined features and text; alone it is the training-free pipeline."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, features: Tensor, text: Tensor) -> Tensor:
        return correlation(features, text, self.grid)
