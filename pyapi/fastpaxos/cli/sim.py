"""`fastpaxos sim`: simulated clusters by the thousand, one of them again in detail, and mutants that must be killed."""

from __future__ import annotations

import ast
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fastpaxos.cli.options import json_option, print_json, progress

__all__ = ["sim"]


@click.group()
def sim() -> None:
    """Run simulated clusters: shipped code, simulated network, disks and clocks, every property checked."""


@sim.command()
@click.option("--seeds", default=1000, show_default=True, type=click.IntRange(1), help="How many seeds.")
@click.option("--from", "first", default=1, show_default=True, type=click.IntRange(0), help="The first seed.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1, 64), help="Worker processes.")
@click.option("--no-shrink", is_flag=True, help="Do not make the first failure smaller.")
@json_option
def run(seeds: int, first: int, jobs: int, no_shrink: bool, as_json: bool) -> int:
    """Run many seeds; each draws its own faults. Exit code 1 if a property broke, or if a situation never occurred."""
    from fastpaxos.testing.campaign import CampaignResult, run_campaign

    said = 0

    def tell(result: CampaignResult) -> None:
        nonlocal said
        if result.seeds - said >= 100:
            said = result.seeds
            rate = result.seeds / max(result.wall_seconds, 1e-9)
            progress(f"{result.seeds} seeds, {len(result.failures)} failures, {rate:.1f} seeds/s")

    result = run_campaign(range(first, first + seeds), jobs, tell)
    missing = result.missing_marks()
    failed = bool(result.failures or missing)
    for failure in result.failures:
        click.echo(f"seed {failure.seed}: {failure.checker}: {failure.message}", err=True)
        click.echo(f"  replay: {failure.replay_command()}", err=True)
    if missing:
        click.echo(f"never happened: {', '.join(missing)}", err=True)
    if result.failures and not no_shrink:
        _tell_shrunk(result.failures[0])
    seconds = max(result.wall_seconds, 1e-9)
    figures: dict[str, Any] = {
        "seeds": result.seeds,
        "from": first,
        "jobs": jobs,
        "events": result.totals["events"],
        "events_per_second": round(result.totals["events"] / seconds),
        "seeds_per_hour": round(result.seeds / seconds * 3600),
        "wall_seconds": round(result.wall_seconds, 1),
        "run_twice": result.run_twice,
        "trace": f"{result.trace:012x}",
        "failures": [
            {"seed": item.seed, "checker": item.checker, "message": item.message, "replay": item.replay_command()}
            for item in result.failures
        ],
        "never_happened": missing,
        "faults_and_marks": dict(sorted(result.totals.items())),
    }
    if as_json:
        print_json(figures)
    else:
        for name, value in figures.items():
            if name not in ("failures", "never_happened", "faults_and_marks"):
                click.echo(f"{name:20} {value}")
        for name, value in sorted(result.totals.items()):
            click.echo(f"  {name:26} {value}")
    return 1 if failed else 0


def _tell_shrunk(failure: Any) -> None:
    from fastpaxos.testing.shrink import shrink

    progress("making the first failure smaller")
    shrunk = shrink(failure, note=progress)
    click.echo(f"smallest scenario after {shrunk.tried} runs: {shrunk.failure.message}", err=True)
    click.echo(f"  replay: {shrunk.replay_command()}", err=True)


@sim.command()
@click.argument("seed", type=int)
@click.option(
    "--set", "settings", multiple=True, metavar="OPTION=VALUE", help='Another value for an option, like "links.loss=0".'
)
@click.option("--shrink", "do_shrink", is_flag=True, help="If it fails, find the smallest scenario that fails alike.")
@click.option("--quiet", is_flag=True, help="Leave out the trace.")
@json_option
def replay(seed: int, settings: tuple[str, ...], do_shrink: bool, quiet: bool, as_json: bool) -> int:
    """Run one seed again and print everything that happens. Exit code 1 if a property breaks."""
    from fastpaxos.testing.campaign import run_seed
    from fastpaxos.testing.swarm import changed, draw_options

    options = draw_options(seed)
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator:
            raise click.BadParameter(f"{setting!r} is not of the form OPTION=VALUE")
        try:
            options = changed(options, name, _literal(value))
        except (ValueError, TypeError) as error:
            raise click.BadParameter(str(error)) from error
    show = not (quiet or as_json)
    if show:
        click.echo(f"options: {asdict(options)}")
    outcome = run_seed(seed, options, trace=click.echo if show else None)
    failure = outcome.failure
    if as_json:
        print_json({**outcome.report, "failure": None if failure is None else failure.message})
    else:
        click.echo(f"report: {outcome.report}")
    if failure is None:
        return 0
    click.echo(f"seed {seed}: {failure.checker}: {failure.message}", err=True)
    if do_shrink:
        _tell_shrunk(failure)
    return 1


@sim.command()
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(1, 64), help="Processes at a time.")
@click.option("--only", metavar="N,N,...", help='Only these mutants; a pair is written "2+16".')
@click.option("--base-seeds", default=1, show_default=True, type=click.IntRange(1, 1000), help="Runs of each mutant.")
@click.option("--seeds-max", default=1000, show_default=True, type=click.IntRange(1), help="Seeds before it survives.")
@click.option("--all-layers", is_flag=True, help="Try every layer on each mutant, not only until one kills it.")
@click.option("--document", type=click.Path(path_type=Path, dir_okay=False), help="Write the table to this file.")
@json_option
def mutants(
    jobs: int,
    only: str | None,
    base_seeds: int,
    seeds_max: int,
    all_layers: bool,
    document: Path | None,
    as_json: bool,
) -> int:
    """Plant faults, one at a time, and demand that each is seen. Needs a source tree; exit code 1 if one survives."""
    from fastpaxos.testing.mutants.campaign import run_mutants
    from fastpaxos.testing.mutants.document import to_document
    from fastpaxos.testing.mutants.report import Outcome

    def tell(outcome: Outcome) -> None:
        name = "+".join(map(str, outcome.active)) or "control"
        progress(f"{name}: {outcome.verdict} by {outcome.checker or outcome.layer} after {outcome.seeds} seeds")

    chosen = None
    if only is not None:
        try:
            chosen = [tuple(int(number) for number in each.split("+")) for each in only.split(",")]
        except ValueError as error:
            raise click.BadParameter(f"--only {only!r} is not of the form 3,17,2+16") from error
    campaign = run_mutants(
        only=chosen, jobs=jobs, base_seeds=base_seeds, seeds_max=seeds_max, all_layers=all_layers, progress=tell
    )
    if document is not None:
        document.write_text(to_document(campaign, f"fastpaxos sim mutants --base-seeds {base_seeds}"))
    figures = campaign.to_mapping()
    if as_json:
        print_json(figures)
    else:
        for name, value in figures.items():
            if name != "outcomes":
                click.echo(f"{name:22} {value}")
    return campaign.exit_code


def _literal(value: str) -> object:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
