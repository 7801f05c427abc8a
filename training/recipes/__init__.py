"""Training configs to start from, by name."""

from __future__ import annotations

from pathlib import Path

from curation.errors import UsageError, nearest


def find_recipe(config: Path) -> Path:
    """The YAML file that is meant: a path, or one of ours by its name, such as ``vae``.

    Raises:
        UsageError: there is none.
    """
    if config.is_file():
        return config
    ours = {path.stem: path for path in Path(__file__).parent.glob("*.yaml")}
    if config.parent == Path() and config.name in ours:
        return ours[config.name]
    raise UsageError(f"there is no file {config}, and no config of ours has that name.{nearest(config.name, ours)}")
