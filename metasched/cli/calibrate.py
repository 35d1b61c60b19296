"""``metasched calibrate``."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from metasched.cli.experiment import add_imports, add_overrides
from metasched.cli.output import add_json, console_of, print_result
from metasched.core.errors import MetaschedError

_FUNCTION = r"[^\W\d][\w.]*:\w+"


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.usage = (
        "%(prog)s CONFIG --method NAME [options] [--section.field VALUE ...]\n"
        "       %(prog)s PACKAGE.MODULE:FUNCTION --import PACKAGE --method NAME [options]"
    )
    add_json(parser)
    what = "an experiment with task.pretrained, or a function that returns a trained network, a recipe and batches"
    parser.add_argument("config", metavar="CONFIG", help=what)
    named = "nearest, adaround, bit_split, bit_split_weights, multipoint or product [adaround]"
    parser.add_argument("--method", metavar="NAME", default="adaround", help=named)
    parser.add_argument(
        "--batches", type=_count, default=16, metavar="N", help="training batches of the experiment [16]"
    )
    units = "layer, block (residual blocks), or names of modules joined by commas [layer]"
    parser.add_argument("--by", metavar="UNITS", default="layer", help=units)
    one = "an option of the method, as steps=2000; `metasched list --json` has them (repeatable)"
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=one)
    parser.add_argument("-o", "--output", metavar="FOLDER", help="folder to create, for the weights and the account")
    deployed = "folder to create, as `metasched deploy` does, for networks of images"
    parser.add_argument("--deploy", metavar="FOLDER", help=deployed)
    add_imports(parser)
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> None:
    """Quantizes a trained network from a few batches."""
    from metasched.calibration.table import find_procedure, options_of

    options = _options(arguments.option)
    spec = find_procedure(arguments.method)
    options_of(spec, options)
    if arguments.deploy and not spec.deploys:
        problem = f"makes integers of levels, and {spec.name} gives layers without levels"
        raise MetaschedError("--deploy", problem, "leave it out; -o writes the weights")
    own = re.fullmatch(_FUNCTION, arguments.config) and not os.path.lexists(arguments.config)
    with console_of(arguments) as console:
        if own:
            if arguments.overrides:
                problem = "has no effect on a network of one's own"
                raise MetaschedError(arguments.overrides[0].partition("=")[0], problem, "leave it out")
            if arguments.batches != arguments.parser.get_default("batches"):
                raise MetaschedError("--batches", "has no effect on batches of one's own", "leave it out")
            from metasched.commands.calibrate import of_function

            request = of_function(arguments.config)
        else:
            from metasched.cli.experiment import load

            experiment = load(arguments, console)
            from metasched.commands.calibrate import of_experiment

            request = of_experiment(experiment, arguments.batches)
        from metasched.commands import calibrate

        by: Any = arguments.by if arguments.by in ("layer", "block") else arguments.by.split(",")
        folders = (Path(f) if f else None for f in (arguments.output, arguments.deploy))
        result = calibrate.run(request, calibrate.How(arguments.method, options, by, *folders), console)
    print_result({**({"folder": arguments.output} if arguments.output else {}), **result}, arguments.json)
    if not (arguments.output or arguments.deploy or arguments.json):
        print("nothing was written; `-o FOLDER` writes the network, and `--deploy FOLDER` its integers")


def _options(given: list[str]) -> dict[str, Any]:
    """The options of the procedure by name; values are YAML.

    Raises:
        MetaschedError: one has no value, or is given twice.
    """
    from metasched.io.strict_yaml import parse

    found: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name or name in found:
            problem = "is given twice" if name in found else f"got {text[:40]!r}"
            raise MetaschedError(f"--option {name}" if name in found else "--option", problem, "give NAME=VALUE once")
        found[name] = parse(value, f"--option {name}")
    return found


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:5]) <= 10_000):
        raise argparse.ArgumentTypeError(f"must be an integer in [1, 10000], got {text[:20]!r}")
    return int(text[:5])
