"""``sresnet compare``: many recipes and networks in one table, beside their ANN and the ANN quantized to equal bits."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import shared
from .contenders import Options, check_names, convert, from_file, name_networks, open_checkpoint, plan
from .measuring import Test, calibrations, measure_all
from .output import check_output
from .say import begin, say
from .work_folder import WorkFolder

if TYPE_CHECKING:
    import s_resnet

FORMS = ("text", "markdown", "latex", "csv", "json", "html")  # s_resnet.report.FORMS, which takes seconds to import


def _steps(_: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    """Steps written 8,16,32."""
    try:
        steps = tuple(sorted({int(part) for part in value.split(",")}))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of steps such as 8,16,32", param=option) from error
    if steps[0] < 1:
        raise click.BadParameter(f"{value!r} has a step below 1", param=option)
    return steps


def _names(_: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Names written a,b,c."""
    names = None if value is None else tuple(part.strip() for part in value.split(","))
    if names and (again := [name for name in names if names.count(name) > 1]):
        raise click.BadParameter(f"{again[0]} is named twice", param=option)
    return names


@click.command()
@click.argument(
    "networks", metavar="CHECKPOINT|NETWORK.snn...", type=click.Path(path_type=Path), nargs=-1, required=True
)
@shared.data("test on")
@click.option(
    "--calibration",
    metavar="DATA",
    help="Images to convert with, and to set the thresholds of the quantized ANN; they need no labels.",
)
@shared.CALIBRATION_IMAGES
@click.option(
    "--recipes",
    metavar="NAME,NAME,...",
    callback=_names,
    show_default="all that are fitted to few steps",
    help="Recipes to convert each CHECKPOINT by, ours or those of published methods.",
)
@click.option(
    "--latency",
    metavar="E,E,...",
    callback=_steps,
    default="4,8,16,32",
    help="Numbers of end-to-end steps to compare at. Each recipe gets the largest T that answers by then.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    multiple=True,
    help="File to write, in the form of its ending: .txt, .md, .tex, .csv, .json, or .html for a page. Can be given "
    "several times.",
)
@click.option("--format", "form", type=click.Choice(FORMS), default="text", help="Form of what is printed.")
@click.option(
    "--work",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    show_default="beside the first FILE, as FILE.work, else compare.work here",
    help="Folder that keeps converted networks and measurements. The same command goes on from there.",
)
@shared.limit()
@click.option("--arch", metavar="NAME", help="Architecture of the checkpoints, as of sresnet convert.")
@click.option("--ema", is_flag=True, help="Take the moving average of the weights, as sresnet convert does.")
@shared.INPUT_SIZE
@shared.MEAN
@shared.STD
@shared.CLASSES
@shared.BATCH_SIZE
@shared.MEMORY
@shared.DEVICE
@shared.FORCE
@shared.DOWNLOAD
@shared.takes(Options)
def compare(asked: Options) -> None:
    """Compare recipes and networks in one table.

    A CHECKPOINT is converted by every recipe, for every latency. A NETWORK.snn is taken as it is: at the T that it was
    fitted to, or else at every latency.

    The table has accuracy over end-to-end steps, over synaptic operations and over measured time, with 95% intervals.
    Two rivals are in it: the ANN, and the ANN whose activations are quantized to as many bits as the spiking network
    can express in its T steps. At each latency the best network is marked, with all that the images cannot tell from
    it.

    Networks and measurements are kept in a folder, so that the command can be stopped and repeated, and a recipe or a
    latency added later costs only itself. What was made from other files, images or settings is made again.

    {DATA}
    Images that a network was calibrated on are left out for all.

    \b
    Examples:
      sresnet compare resnet20.th --calibration cifar10:/data --data cifar10:/data -o table.html -o table.tex
      sresnet compare resnet20.th --calibration cifar10:/data --recipes calibrated,multilevel,ltb --latency 8,16
      sresnet compare mine.snn theirs.snn --data photos/val --format markdown
    """
    begin(", ".join(map(str, asked.networks)))
    import s_resnet

    s_resnet.runtime.find_device(asked.device)
    check_names(asked.networks)
    for path in asked.output:
        s_resnet.report.comparison_form(path)
        check_output(path, *asked.networks, force=asked.force)
    recipes = _recipes(asked.recipes)
    folder = WorkFolder(_folder(asked))
    try:
        with s_resnet.runtime.memory_limit(asked.memory):
            found = _compared(asked, recipes, folder)
    except KeyboardInterrupt as stopped:
        stopped.add_note(f"Repeat it to go on from {folder.folder}.")
        raise
    command = shlex.join(["sresnet", *sys.argv[1:]])
    for path in asked.output:
        s_resnet.report.write_comparison(found, path, command)
    for line in folder.said():
        say(line, err=True)
    say(s_resnet.report.comparison_text(found, asked.form, command).rstrip("\n"))


def _compared(asked: Options, recipes: Sequence[s_resnet.Recipe], folder: WorkFolder) -> s_resnet.analysis.Comparison:
    """Convert, measure and compare."""
    import s_resnet

    given = {path: s_resnet.load(path) for path in asked.networks if path.suffix == ".snn"}
    if given and len(given) == len(asked.networks) and asked.recipes is not None:
        raise click.UsageError("--recipes needs a checkpoint to convert. Name one, or leave it out.")
    opened = [open_checkpoint(path, asked) for path in asked.networks if path not in given]
    plans = [plan(one, recipes, asked.latency) for one in opened]
    conversions = [one for found, _ in plans for one in found]
    made, refused = convert(conversions, asked, folder)
    names = name_networks(opened, given)
    files = [(from_file(path, snn, names, asked.latency), snn) for path, snn in given.items()]
    contenders = [*made, *(contender for contender, _ in files)]
    missing = [*(one for _, late in plans for one in late), *refused]
    if not contenders:
        reasons = "; ".join(dict.fromkeys(f"{one.name}: {one.reason}" for one in missing))
        raise click.UsageError(
            f"There is nothing to compare. {reasons}. Ask for a larger --latency, or other --recipes."
        )
    first = {contender.network: contender for contender in reversed(made)}
    graphs = [*given.values(), *(s_resnet.load(contender.path) for contender in first.values())]
    test = Test(asked, folder, graphs)
    measured, notes = measure_all(contenders, test, calibrations(opened, files, asked))
    test.warn()
    found = s_resnet.analysis.compare(measured, missing)
    used = [recipe.name for recipe in recipes if any(recipe.name == contender.name for contender in made)]
    methods = s_resnet.conversion.PUBLISHED
    references = tuple(f"{name}: {methods[name].citation}" for name in used if name in methods)
    return replace(found, notes=(*found.notes, *notes), references=references)


def _recipes(names: Sequence[str] | None) -> list[s_resnet.Recipe]:
    """The recipes of these names, by default all that are fitted to few steps.

    Raises:
        click.BadParameter: one is misspelled, or auto.
        ConversionError: there is no such recipe, or none of that name any more.
    """
    import s_resnet

    if names is None:
        return [recipe for recipe in s_resnet.RECIPES.values() if recipe.fits]
    known = (*s_resnet.RECIPES, *s_resnet.conversion.PUBLISHED)
    for name in names:
        if name == "auto":
            raise click.BadParameter(
                "auto chooses one of the recipes that are compared here. Name these, or convert with it and name the "
                "network that comes out.",
                param_hint="'--recipes'",
            )
        if near := [] if name in known else difflib.get_close_matches(name, known, 1, 0.8):
            said = f"{name!r} is not one of {', '.join(known)}. Did you mean {near[0]}?"
            raise click.BadParameter(said, param_hint="'--recipes'")
    return [s_resnet.conversion.recipe_named(name) for name in names]


def _folder(asked: Options) -> Path:
    """Where networks and measurements are kept."""
    if asked.work is not None:
        return asked.work
    return asked.output[0].with_suffix(".work") if asked.output else Path("compare.work")
