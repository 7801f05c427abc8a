"""Saying results on the terminal, for people and as JSON."""

from __future__ import annotations

import dataclasses
import json as jsonlib
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from curation.errors import UsageError
from curation.output import RUN_FILE, read_run_file
from curation.plan import Plan, is_dense
from curation.stage import TableStage
from curation.summary import Summary, score_table, summarise
from curation.table import Store

_ERRORS_SHOWN = 12


def open_store(directory: Path) -> Store:
    """The tables of a run's output folder.

    Raises:
        UsageError: the folder is not the output of a run.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory}: no such folder")
    if read_run_file(directory) is None:
        raise UsageError(f"{directory} is not the output of a run: it holds no {RUN_FILE}")
    return Store(directory)


def exit_status(summary: Summary) -> int:
    """0 done; 1 nothing was kept, or an accepted clip could not be delivered or waits for another run."""
    return 0 if summary.clips["kept"] and not summary.num_lost and not summary.num_waiting else 1


def say(summary: Summary, *, json: bool = False) -> None:
    """Print the funnel of a run and what to do next."""
    if json:
        print(summary.to_json())
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(_funnel(summary))
    _say_errors(console, summary)
    if summary.num_ignored:
        console.print(f"{summary.num_ignored} other files in the input folders are not videos by their suffix.")
    _say_next(console, summary)


def _funnel(summary: Summary) -> Table:
    table = Table(title=f"{summary.pipeline}: {escape(summary.output)}", title_justify="left", box=None)
    table.add_column("")
    table.add_column("count", justify="right")
    table.add_column("hours", justify="right")
    table.add_row("videos", str(summary.videos["in"]), f"{summary.hours['in']:.3f}")
    if summary.videos["failed"]:
        table.add_row("  failed", str(summary.videos["failed"]), "")
    table.add_row("shots", str(summary.num_shots), "")
    table.add_row("clips", str(sum(summary.clips.values())), "")
    table.add_row("  [green]kept[/]", str(summary.clips["kept"]), f"{summary.hours['kept']:.3f}")
    table.add_row("  rejected", str(summary.clips["rejected"]), f"{summary.hours['rejected']:.3f}")
    for column, count in summary.rejected_by.items():
        rule = f" (keeps {summary.rules[column]})" if column in summary.rules else ""
        table.add_row(f"    by {column}{escape(rule)}", str(count), "")
    if summary.clips["failed"]:
        table.add_row("  [red]failed[/]", str(summary.clips["failed"]), f"{summary.hours['failed']:.3f}")
    for stage, count in summary.failed_by.items():
        table.add_row(f"    in {stage}", str(count), "")
    table.add_row("captioned", str(summary.num_captioned), "")
    shards = summary.shards
    table.add_row("shards", str(shards["shards"]), f"{shards['samples']} samples, {shards['bytes'] / 1e6:.1f} MB")
    return table


def _say_errors(console: Console, summary: Summary) -> None:
    if summary.video_errors:
        console.print("\nVideos that failed or lost something:")
    for video, error in list(summary.video_errors.items())[:_ERRORS_SHOWN]:
        console.print(f"  {escape(video)}: {escape(error)}")
    rest = len(summary.video_errors) - _ERRORS_SHOWN
    if rest > 0:
        console.print(f"  … and {rest} more: SELECT video, error FROM '{escape(summary.output)}/videos/*.parquet'")
    if summary.failed_with:
        console.print("\nClips that failed, by the commonest error:")
        console.print(f"  {summary.num_failed_with} of {summary.clips['failed']}: {escape(summary.failed_with)}")
    if summary.videos["failed"] or summary.failed_with:
        console.print("  What failed is tried again with --retry-failed.")


def _say_next(console: Console, summary: Summary) -> None:
    output = escape(summary.output)
    if summary.wall_s:
        decoded = int(summary.metrics.get("frames_decoded", 0))
        encoded = int(summary.metrics.get("clips_encoded", 0))
        console.print(f"\nDecoded {decoded} frames, encoded {encoded} clips in {summary.wall_s:.0f} s.")
    if summary.num_lost:
        console.print(
            f"[red]{summary.num_lost} accepted clips could not be delivered[/]: see `error` in the clip table."
        )
    if summary.num_waiting:
        console.print(f"[red]{summary.num_waiting} clips could not be done now[/]: {escape(str(summary.waiting_for))}")
        console.print("The same command again tries them again, and only them.")
    if not summary.clips["kept"]:
        why = [f"{column} took {count}" for column, count in summary.rejected_by.items()]
        why += [f"{summary.clips['failed']} clips failed"] if summary.clips["failed"] else []
        loosen = " Loosen a rule and run again." if summary.rejected_by else ""
        console.print(f"[red]Nothing was kept[/] ({', '.join(why) or 'no clip was found'}).{loosen}")
        return
    console.print(f"Table:  SELECT * FROM '{output}/clips/*.parquet'    scores: cutroom stats {output}")
    if summary.shards["samples"]:
        console.print(f"Shards: {output}/shards    check them: cutroom verify {output}")
    uncaptioned = summary.clips["kept"] - summary.num_captioned
    if uncaptioned and summary.asks_for_captions:
        console.print(
            f"{uncaptioned} kept clips have no caption: the model said nothing, or cleaning left nothing of it; "
            "change the model or its prompt."
        )
    elif uncaptioned:
        console.print(f"{uncaptioned} kept clips have no caption; put name.txt or name.json beside the videos.")


def say_stats(store: Store, *, json: bool = False) -> None:
    """Print the funnel and the spread of every score."""
    summary, scores = summarise(store), score_table(store)
    if json:
        print(jsonlib.dumps({**dataclasses.asdict(summary), "scores": scores}, indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(_funnel(summary))
    _say_errors(console, summary)
    table = Table(title="scores", title_justify="left", box=None)
    for name in ("", "min", "p05", "p50", "p95", "max", "unknown"):
        table.add_column(name, justify="right" if name else "left")
    for name, row in scores.items():
        quantiles = (row[key] for key in ("min", "p05", "p50", "p95", "max"))
        table.add_row(name, *("-" if q is None else f"{q:.3g}" for q in quantiles), str(row["unknown"]))
    console.print()
    console.print(table)


def say_plans(plans: list[Plan], missing: Mapping[str, str], *, json: bool = False) -> None:
    """Print what each pipeline measures and keeps; ``missing`` says of others, by name, which package they lack."""
    if json:
        lacking = [{"pipeline": name, "missing": why} for name, why in missing.items()]
        print(jsonlib.dumps([plan.resolved() for plan in plans] + lacking, indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    for plan in plans:
        table = Table(title=f"{plan.pipeline}: ok", title_justify="left", box=None)
        for name in ("stage", "runs", "writes", "keeps"):
            table.add_column(name)
        for step in plan.steps:
            runs = "while decoding" if step is plan.decode or is_dense(step.stage) else "after decoding"
            runs = "on all clips at once" if isinstance(step.stage, TableStage) else runs
            writes = "clips, contact sheets" if step is plan.decode else ", ".join(step.stage.writes.names)
            keeps = ", ".join(f"{column} {rule}" for column, rule in step.rules.items())
            table.add_row(step.stage.name, runs, writes, escape(keeps))
        console.print(table)
        console.print()
    for name, why in missing.items():
        console.print(f"[bold]{escape(name)}: cannot run here[/]\n{escape(why)}")


def say_problems(directory: Path, problems: list[str], *, json: bool = False) -> None:
    """Print what verification found."""
    if json:
        print(jsonlib.dumps({"problems": problems}, indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(f"[red]✗[/] {escape(problem)}")
    if not problems:
        console.print(f"{escape(str(directory))}: tables, shards and index agree")
