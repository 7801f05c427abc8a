"""Models of the real classes, small enough to be made in a test, with random weights."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from filters.learned import Figures, LearnedFilter, Verdict

LABELS = ("clean", "watermark", "nsfw")

_VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 1.0,  # so that pictures differ in their scores
}


def _labels(labels: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def vit(folder: Path, *, labels: tuple[str, ...] = LABELS, multi_label: bool = False, seed: int = 0) -> Path:
    """Save a ViT classifier and its image processor, unless they are there."""
    if folder.exists():
        return folder
    import torch

    from curation.torchvision import mend

    mend()
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    problem = "multi_label_classification" if multi_label else "single_label_classification"
    config = ViTConfig(
        **_VIT,
        problem_type=problem,
        **_labels(labels),
    )
    torch.manual_seed(seed)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def resnet(folder: Path, *, labels: tuple[str, ...] = LABELS, seed: int = 0) -> Path:
    """Save a ResNet classifier with a processor that keeps the aspect and crops, as ConvNeXt's does."""
    import torch

    from curation.torchvision import mend

    mend()
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **_labels(labels))
    torch.manual_seed(seed)
    model = ResNetForImageClassification(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    torch.nn.init.normal_(model.classifier[1].weight)  # so that pictures differ in their scores
    model.save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875).save_pretrained(folder)
    return folder


def dino(folder: Path, *, seed: int = 0) -> Path:
    """Save a ViT without a head or pooler and its image processor, as DINO is published, unless they are there."""
    if folder.exists():
        return folder
    import torch

    from curation.torchvision import mend

    mend()
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(seed)
    ViTModel(ViTConfig(**_VIT), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def clip(folder: Path, *, width: int = 8, seed: int = 0) -> Path:
    """Save a CLIP of open_clip with its configuration, as its ``push_to_hf_hub`` does."""
    if folder.exists():
        return folder
    import json

    import torch
    from safetensors.torch import save_file

    from curation.torchvision import mend

    mend()
    import open_clip

    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": width, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # so that pictures and texts differ
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    mean_and_std = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    text_of_config = json.dumps({"model_cfg": config, "preprocess_cfg": mean_and_std})
    (folder / "open_clip_config.json").write_text(text_of_config)
    return folder


def head(path: Path, *, width: int = 8, seed: int = 0) -> Path:
    """Save an aesthetic head with the layers and names of LAION's MLP."""
    import torch

    torch.manual_seed(seed)
    sizes = (width, 32, 16, 1)
    layers: list[torch.nn.Module] = []
    for taken, given in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(taken, given), torch.nn.Dropout(0.2)]
    model = torch.nn.ModuleDict({"layers": torch.nn.Sequential(*layers[:-1])})
    torch.save(model.state_dict(), path)
    return path


def learned_filter(name: str, dimension: int, *, seed: int = 0, encoder: dict[str, str] | None = None) -> LearnedFilter:
    """A filter with random coefficients."""
    drawn = np.random.default_rng(seed).normal(size=dimension + 1)
    middle = Figures(threshold=0.5, precision=1.0, recall=1.0, f1=1.0)
    verdict = Verdict(
        num_labels=20,
        num_positive=10,
        num_videos=20,
        num_unmeasured=0,
        average_precision=1.0,
        at_half=middle,
        wanted_precision=0.9,
        at_wanted=middle,
    )
    return LearnedFilter(
        name=name,
        encoder=encoder or {},
        dimension=dimension,
        intercept=float(drawn[-1]),
        coefficients=drawn[:-1].tolist(),
        regularisation=1.0,
        num_folds=5,
        cross_validated=verdict,
    )


def raft_weights(file: Path, name: str, seed: int = 0) -> Path:
    """Save the state dict of torchvision's ``raft_large`` or ``raft_small``, which are as small as they come."""
    import torch

    from curation.torchvision import mend

    mend()
    from torchvision.models import optical_flow

    torch.manual_seed(seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(getattr(optical_flow, name)().state_dict(), file)
    return file
