"""``cutroom shard``: shards from the table of a run, or from clips that are cut and captioned already."""

from __future__ import annotations

import time
from pathlib import Path

from curation.engine import EngineName, make_engine
from curation.errors import UsageError
from curation.output import RUN_FILE, locked, read_run_file
from curation.plan import ShardSettings
from curation.progress import Progress
from curation.run import run, write_shards
from curation.summary import Summary, summarise
from curation.table import Store

AS_IS = "as_is"


def shard_directory(
    directory: Path,
    output: Path | None = None,
    *,
    engine: EngineName = "ray",
    address: str | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Write the shards that a run's table asks for, or pack ``videos/*.mp4`` with ``labels/*.txt`` as they are.

    Args:
        directory: the output of a run, or a folder that holds ``videos/``.
        output: for such a folder: where tables and shards go.

    Raises:
        UsageError: the folder is neither, or its run was killed before it was known which clips are kept.
    """
    state = read_run_file(directory) if directory.is_dir() else None
    if state is None:
        return _pack(directory, output, engine=engine, address=address, progress=progress)
    if output is not None:
        raise UsageError(f"{directory} is the output of a run and gets its shards in place; leave --output out")
    settings, store, started = ShardSettings(**state["shards"]), Store(directory), time.monotonic()
    go = make_engine(engine, address=address)
    with locked(directory), progress or Progress(quiet=True) as shown:
        if not state.get("settled", True):
            raise UsageError(
                f"the run of {directory} was not finished, and clips are kept only for now; "
                f"run {state['pipeline']!r} again to its end"
            )
        store.begin()
        metrics = write_shards(store, settings, go, state["base"], shown, thorough=True)
        return summarise(store, metrics=metrics, wall_s=time.monotonic() - started)


def _pack(
    directory: Path, output: Path | None, *, engine: EngineName, address: str | None, progress: Progress | None
) -> Summary:
    videos = directory / "videos"
    if not videos.is_dir():
        raise UsageError(f"{directory} is neither the output of a run (no {RUN_FILE}) nor a folder with videos/ in it")
    if output is None:
        raise UsageError(f"say where the shards of {directory} shall go: --output DIR")
    return run(AS_IS, [str(videos)], output, engine=engine, address=address, progress=progress)
