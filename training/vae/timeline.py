"""Where in time the frames stand that one pass through the VAE sees, and what it knows of the others.

Three things in this model look across time: a causal convolution needs the frames before its input, GroupNorm pools
over all frames, and pooling and upsampling set the very first frame apart. Every layer asks the timeline for them, so
that a whole pass, a pass in chunks and a pass spread over ranks (``training.vae.parallel``) run the same layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Timeline:
    """A whole pass, or one chunk of a pass in chunks.

    ``before`` is the timeline of the chunk before this one; ``keep`` says that a chunk follows. A timeline serves one
    pass through one encoder or decoder. It is never changed by a second run of a layer, so that activation
    checkpointing may run layers again.
    """

    def __init__(self, before: Timeline | None = None, *, keep: bool = False) -> None:
        self.first = before is None
        """Whether the first frame given is the first frame of the video."""
        self._past: dict[nn.Module, Tensor] = before._kept if before is not None else {}
        self._kept: dict[nn.Module, Tensor] = {}
        self._keep = keep

    def check(self, frames: int, *, ratio: int) -> None:
        """Raise ValueError unless a whole pass can take ``frames`` frames (``ratio`` 4) or latents (1)."""
        if frames < 1 or (frames - 1) % ratio:
            below = max((frames - 1) // ratio, 0) * ratio + 1
            raise ValueError(
                f"the VAE takes {ratio}k+1 frames, not {frames}; the nearest it takes are {below} and {below + ratio}"
            )

    def is_image(self, x: Tensor) -> bool:
        """Whether ``x`` (B, C, T, H, W) is of a single frame that nothing comes before or after."""
        return self.first and not self._keep and x.shape[2] == 1

    def past(self, conv: nn.Module, x: Tensor, *, frames: int) -> Tensor:
        """The ``frames`` frames before ``x`` (B, C, T, H, W), and note its last ones for the chunk that follows.

        Before the first frame of a video there is that frame again (CogVideoX, ``pad_mode`` "first").
        """
        if self.first:
            past = x[:, :, :1].expand(-1, -1, frames, -1, -1)
        else:
            # Without gradients no layer runs again, and what was read once can go.
            past = self._past[conv] if torch.is_grad_enabled() else self._past.pop(conv)
        if self._keep and conv not in self._kept:
            tail = x if x.shape[2] >= frames else torch.cat([past, x], dim=2)
            self._kept[conv] = tail[:, :, -frames:].clone()  # a view would keep all of it alive
        return past

    def extend(self, conv: nn.Module, x: Tensor, *, frames: int) -> Tensor:
        """Put the ``frames`` frames before ``x`` in front of it: (B, C, frames + T, H, W)."""
        return torch.cat([self.past(conv, x, frames=frames), x], dim=2)

    def group_norm(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """Normalise over the frames of this pass."""
        return functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
