"""``toolgym algo``: the catalogue of methods."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from toolgym.cli.output import format_value, print_json, print_table

LIST = """\
List the algorithms: name, family, how sure we are of the formula, and what it computes.

  toolgym algo list
  toolgym algo list --family advantage
"""
SHOW = """\
Show one algorithm: its equation, parts, defaults and source, what is certain and where we differ.

  toolgym algo show group_advantage
"""


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser("algo", help="list algorithms, show one", description=LIST + "\n" + SHOW)
    commands = parser.add_subparsers(metavar="list|show", required=True)
    lister = commands.add_parser("list", help="all, or those of one family", description=LIST)
    lister.add_argument("--family", help="only this family, e.g. advantage, policy_loss, distillation")
    lister.add_argument("--json", action="store_true", help="print JSON")
    lister.set_defaults(handler=list_algorithms)
    shower = commands.add_parser("show", help="one algorithm's card", description=SHOW)
    shower.add_argument("name", metavar="NAME")
    shower.add_argument("--json", action="store_true", help="print JSON")
    shower.set_defaults(handler=show_algorithm)


def list_algorithms(args: argparse.Namespace) -> int:
    """Handler of ``toolgym algo list``."""
    errors = importlib.import_module("toolgym.errors")
    cards = importlib.import_module("toolgym.algorithms.registry").cards()  # imports torch
    families = {c.family for c in cards}
    if args.family is not None and args.family not in families:
        raise errors.ConfigError(errors.nearest(args.family, families, what="family"))
    cards = [c for c in cards if args.family in (None, c.family)]
    if args.json:
        print_json([c.to_dict() for c in cards])
    else:
        rows = sorted((c.family, c.name, c.certainty, c.summary) for c in cards)
        print_table(["family", "name", "certainty", "what it computes"], rows)
    return 0


def show_algorithm(args: argparse.Namespace) -> int:
    """Handler of ``toolgym algo show``."""
    card = importlib.import_module("toolgym.algorithms.registry").get(args.name).to_dict()
    if args.json:
        print_json(card)
        return 0
    print(f"{card['name']} ({card['family']})\n\n{card['summary']}\n")
    print("\n".join(f"    {line}" for line in card["equation"].splitlines()) + "\n")
    for key, value in card["defaults"].items():
        print(f"  {key} = {format_value(value)}")
    for key in ("parts", "source", "certainty", "differs", "function"):
        value = ", ".join(card[key]) if key == "parts" else card[key]
        if value:
            print(f"{key + ':':<11}{value}")
    return 0
