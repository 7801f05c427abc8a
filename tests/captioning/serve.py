"""``transformers serve``, where torchvision is another build than torch: ``python -m tests.captioning.serve …``."""

from __future__ import annotations

import sys

from curation.torchvision import mend


def main() -> None:
    mend()
    import torch
    import torchvision.io
    from torchvision.io.image import _has_image_ops

    if not _has_image_ops():  # the server decodes pictures with them

        def decode_image(data: torch.Tensor, **_: object) -> torch.Tensor:
            import cv2

            rgb = cv2.imdecode(data.numpy(), cv2.IMREAD_COLOR_RGB)
            return torch.from_numpy(rgb).permute(2, 0, 1)

        torchvision.io.decode_image = decode_image
    from transformers.cli.transformers import main as transformers_main

    sys.argv = ["transformers", *sys.argv[1:]]
    transformers_main()


if __name__ == "__main__":
    main()
