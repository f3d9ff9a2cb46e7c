"""Image, crop and token geometry of one model. The only place where these numbers are related."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Geometry(BaseModel):
    """Sizes in pixels of the square model input and its overlapping crops.

    Source: MODEL_SPEC section (g). The defaults are the paper's: 2x2 crops of 384 px at stride 256 in 640 px.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(default=640, gt=0)
    crop_size: int = Field(default=384, gt=0)
    stride: int = Field(default=256, gt=0)
    patch_size: int = Field(default=16, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Geometry:
        for name in ("image_size", "crop_size", "stride"):
            if (value := getattr(self, name)) % self.patch_size:
                raise ValueError(f"{name} is {value}; expected a multiple of patch_size {self.patch_size}")
        if self.crop_size > self.image_size:
            raise ValueError(f"crop_size {self.crop_size} is larger than image_size {self.image_size}")
        if (self.image_size - self.crop_size) % self.stride:
            raise ValueError(
                f"stride {self.stride} does not tile the image: image_size - crop_size = "
                f"{self.image_size - self.crop_size} is not a multiple of it"
            )
        if self.crops_per_side > 1 and self.stride > self.crop_size:
            raise ValueError(f"stride {self.stride} leaves gaps between crops of {self.crop_size}")
        return self

    @property
    def grid(self) -> int:
        """Patches a side in the whole image."""
        return self.image_size // self.patch_size

    @property
    def crop_grid(self) -> int:
        """Patches a side in a crop."""
        return self.crop_size // self.patch_size

    @property
    def token_stride(self) -> int:
        """Distance of neighbouring crops in patches."""
        return self.stride // self.patch_size

    @property
    def crops_per_side(self) -> int:
        return (self.image_size - self.crop_size) // self.stride + 1

    @property
    def crops(self) -> int:
        return self.crops_per_side**2
