"""``metasched import``."""

from __future__ import annotations

import argparse

from metasched.cli.experiment import add_overrides, load
from metasched.cli.output import add_output, put_schedule


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.usage = "%(prog)s CONFIG FILE [--from quantlab] [--total N] [options] [--section.field VALUE ...]"
    parser.add_argument("config", metavar="CONFIG", help="the experiment of the schedule, a YAML file")
    parser.add_argument("policy", metavar="FILE", help="pbt_policy_<trial>.txt, or a JSON file of QuantLab")
    kinds = ["ray", "quantlab"]
    parser.add_argument(
        "--from", dest="source", choices=kinds, default=kinds[0], help="software that has written the file [ray]"
    )
    whole = "iterations of the whole run in Ray Tune, or epochs in QuantLab (default for QuantLab: those of the file)"
    parser.add_argument("--total", type=int, metavar="N", help=whole)
    add_output(parser)
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> None:
    """Converts a policy of population-based training, or a schedule of QuantLab, to a schedule file."""
    if arguments.source == "ray" and arguments.total is None:
        arguments.parser.error("the following arguments are required: --total")
    experiment = load(arguments)
    from metasched.config.writing import to_dict
    from metasched.exchange.pbt import import_policy
    from metasched.exchange.quantlab.importing import import_quantlab
    from metasched.training.problem import build_problem

    network = build_problem(experiment.problem).network
    schedule = {"ray": import_policy, "quantlab": import_quantlab}[arguments.source](
        arguments.policy,
        total=arguments.total,
        name=experiment.name,
        method_name=experiment.method.name,
        method_parameters={k: v for k, v in to_dict(experiment)["method"].items() if k != "name"},
        controls=network.method.controls,
        layers=network.layers,
    )
    put_schedule(schedule, arguments.output)
