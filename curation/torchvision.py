"""Let torchvision be imported beside a torch for CPUs. Call ``mend`` before anything that imports it.

The wheel of torchvision on PyPI is built for CUDA. Beside a torch without CUDA its compiled part cannot be loaded,
and then its import fails at operators that nothing here uses, and with it open_clip, timm and most models of
transformers. Declaring those operators is enough: of torchvision only transforms are needed.
"""

from __future__ import annotations

import functools

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def mend() -> None:
    """Make ``import torchvision`` work in this process; does nothing where it does by itself."""
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    else:
        del torchvision
        return
    import sys

    import torch

    # What the failed import left half loaded would be found again instead of being imported.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        library.define(operator + _SCHEMA)
    _declared.append(library)  # the declarations go when it goes
    import torchvision  # fails here, with its own words, if this was not the only reason


_declared: list[object] = []
