"""The folder of a whole pipeline around a transformer: what ``cutroom sample`` and diffusers open."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from curation.files import aside
from training.transformer.config import TransformerConfig
from training.transformer.diffusion import Diffusion
from training.vae.config import VAEConfig
from training.weights import CONFIG, write

INDEX = "model_index.json"
_TEXT = ("text_encoder", "tokenizer")


@dataclasses.dataclass(frozen=True)
class Parts:
    """What stands beside the transformer.

    Attributes:
        vae: folder of its weights, and its configuration (which may have another scaling factor).
        text: the folders ``text_encoder`` and ``tokenizer``; one folder may be both.
    """

    vae: Path
    vae_config: VAEConfig
    text: tuple[Path, Path]
    diffusion: Diffusion


def write_pipeline(folder: Path, *, config: TransformerConfig, state: Mapping[str, Tensor], parts: Parts) -> None:
    """Write the transformer, and what belongs to it where that is not there yet.

    Files of the VAE and of the text encoder are linked where the file system can, and copied otherwise: they do not
    change, and would take their space again at every stage.
    """
    write(folder / "transformer", config=config.to_json(), state=state)
    parts.diffusion.save_pretrained(folder / "scheduler")
    _share(parts.vae, folder / "vae", leave=(CONFIG,))
    with aside(folder / "vae" / CONFIG) as file:
        file.write_text(parts.vae_config.to_json(), encoding="utf-8")
    for name, source in zip(_TEXT, parts.text, strict=True):
        _share(source, folder / name)
    with aside(folder / INDEX) as file:
        file.write_text(json.dumps(_index(config, parts), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _index(config: TransformerConfig, parts: Parts) -> dict[str, Any]:
    _, tokenizer = parts.text
    return {
        "_class_name": "CogVideoXImageToVideoPipeline" if config.reads_image else "CogVideoXPipeline",
        "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
        # Also where its files are of a whole T5, whose decoder a pipeline cannot call.
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", _tokenizer_class(tokenizer)],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }


def _tokenizer_class(folder: Path) -> str:
    """The class that a tokenizer's file names."""
    try:
        name = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("tokenizer_class")
    except (OSError, ValueError):
        name = None
    if name == "TokenizersBackend":  # as transformers 5 calls it inside; its older name every version has
        return "PreTrainedTokenizerFast"
    return name if isinstance(name, str) else "T5Tokenizer"


def _share(source: Path, folder: Path, *, leave: tuple[str, ...] = ()) -> None:
    """The files of a folder in another one."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        place = folder / path.name
        if path.is_file() and path.name not in leave and not path.name.startswith(".") and not place.exists():
            with aside(place) as other:
                try:
                    os.link(path.resolve(), other)
                except OSError:
                    shutil.copyfile(path, other)
