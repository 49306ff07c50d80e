"""``toolgym algo``: the catalogue of methods."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from toolgym.cli.output import format_value, print_json, print_table

LIST = """\
List the methods: the presets of a recipe (algorithm = "ctpo"), whole methods, with what those await that the trainer
cannot run yet; and the functions they are made of, with how sure we are of each formula and what it computes.

  toolgym algo list
  toolgym algo list --family preset
  toolgym algo list --family advantage
"""
SHOW = """\
Show one method: its equation, parts, defaults and source, what is certain and where we differ.

  toolgym algo show ctpo
  toolgym algo show group_advantage
"""
PRESET = "preset"  # the family of the methods that are made of others


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser("algo", help="list algorithms, show one", description=LIST + "\n" + SHOW)
    commands = parser.add_subparsers(metavar="list|show", required=True)
    lister = commands.add_parser("list", help="all, or those of one family", description=LIST)
    lister.add_argument("--family", help="only this family, e.g. preset, advantage, policy_loss, distillation")
    lister.add_argument("--json", action="store_true", help="print JSON")
    lister.set_defaults(handler=list_algorithms)
    shower = commands.add_parser("show", help="one method's card", description=SHOW)
    shower.add_argument("name", metavar="NAME")
    shower.add_argument("--json", action="store_true", help="print JSON")
    shower.set_defaults(handler=show_algorithm)


def list_algorithms(args: argparse.Namespace) -> int:
    """Handler of ``toolgym algo list``."""
    errors = importlib.import_module("toolgym.errors")
    presets = importlib.import_module("toolgym.trainer.presets")
    cards = importlib.import_module("toolgym.algorithms.registry").cards()  # imports torch
    families = {PRESET, *(c.family for c in cards)}
    if args.family is not None and args.family not in families:
        raise errors.ConfigError(errors.nearest(args.family, families, what="family"))
    methods = [presets.describe(name) for name in presets.PRESETS] if args.family in (None, PRESET) else []
    cards = [c for c in cards if args.family in (None, c.family)]
    if args.json:
        print_json([{"name": m["preset"], "family": PRESET} | m for m in methods] + [c.to_dict() for c in cards])
        return 0
    if methods:
        rows = [(m["preset"], f"awaits {m['awaits']}" if m["awaits"] else m["recipe"], m["source"]) for m in methods]
        print_table([PRESET, "in a recipe", "source"], rows)
    if methods and cards:
        print()
    if cards:
        rows = sorted((c.family, c.name, c.certainty, c.summary) for c in cards)
        print_table(["family", "function", "certainty", "what it computes"], rows)
    return 0


def show_algorithm(args: argparse.Namespace) -> int:
    """Handler of ``toolgym algo show``: the preset of that name, the function of that name, or both."""
    errors = importlib.import_module("toolgym.errors")
    presets = importlib.import_module("toolgym.trainer.presets")
    registry = importlib.import_module("toolgym.algorithms.registry")
    cards = {c.name: c for c in registry.cards()}
    if args.name not in cards and args.name not in presets.PRESETS:
        raise errors.ConfigError(errors.nearest(args.name, {*cards, *presets.PRESETS}, what="algorithm"))
    preset = presets.describe(args.name) if args.name in presets.PRESETS else None
    card = cards[args.name].to_dict() if args.name in cards else None
    parts = [cards[name].to_dict() for name in preset["made_of"] if name != args.name] if preset else []
    if args.json:
        print_json((card or {"name": args.name, "family": PRESET}) | {"preset": preset and preset | {"cards": parts}})
        return 0
    if preset:
        _print_preset(preset)
    for shown in ([card] if card else []) + parts:
        print()
        _print_card(shown)
    return 0


def _print_preset(preset: dict[str, Any]) -> None:
    print(f"{preset['preset']} (preset)\n")
    if preset["awaits"]:
        print(f"not yet in a recipe: it awaits {preset['awaits']}")
    else:
        print(f'in a recipe: {preset["recipe"]}, or algorithm.preset = "{preset["preset"]}" with keys of your own')
    for key, value in preset["keys"].items():
        print(f"  {key} = {_toml(value)}")
    for key, value in preset["advice"].items():
        print(f"  with it the paper has {key} = {_toml(value)}")
    print(f"made of: {', '.join(preset['made_of'])}\nsource:  {preset['source']}")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else format_value(value)


def _print_card(card: dict[str, Any]) -> None:
    print(f"{card['name']} ({card['family']})\n\n{card['summary']}\n")
    print("\n".join(f"    {line}" for line in card["equation"].splitlines()) + "\n")
    for key, value in card["defaults"].items():
        print(f"  {key} = {format_value(value)}")
    for key in ("parts", "source", "certainty", "differs", "function"):
        value = ", ".join(card[key]) if key == "parts" else card[key]
        if value:
            print(f"{key + ':':<11}{value}")
