"""`har_figures` and `har_excess`: what two model bundles said of the same live windows, told and judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DOCUMENTATION = """
  name: har_excess
  short_description: In what a new model bundle differs too much from the one before
  description:
    - Takes C(slots.comparison) of C(har-agent status --json).
    - A figure that the agent could not tell counts as out of its limit, an agreement of bundles with other labels too,
      which only a limit of 0 lets pass.
  options:
    _input:
      description: The comparison.
      type: dict
      required: true
    min_agreement:
      description: Least share of windows that got the same label.
      type: float
      required: true
    max_confidence_drop:
      description: By how much the mean confidence may be lower.
      type: float
      required: true
    max_unknown_increase:
      description: By how much the share of unknown windows may be larger.
      type: float
      required: true
"""

EXAMPLES = """
- name: Judge
  ansible.builtin.debug:
    msg: "{{ compared | har_excess(0.8, 0.1, 0.1) }}"
"""

RETURN = """
  _value:
    description: What is out of its limit, for people; empty if nothing is.
    type: str
"""


def figures(comparison: Mapping[str, Any]) -> str:
    """Return a comparison for people."""
    pairs = [
        f"{name} {_figure(comparison[name]['old'])} -> {_figure(comparison[name]['new'])}"
        for name in ("confidence", "novelty", "unknown")
    ]
    return f"{comparison['windows']} windows, agreement {_figure(comparison['agreement'])}, {', '.join(pairs)}"


def excess(
    comparison: Mapping[str, Any], min_agreement: float, max_confidence_drop: float, max_unknown_increase: float
) -> str:
    """Return in what the new bundle differs too much, for people; empty if in nothing.

    `comparison`: `slots.comparison` of a status. The limits are shares of windows, and a difference of probabilities.
    """
    agreement, confidence, unknown = (comparison[name] for name in ("agreement", "confidence", "unknown"))
    found = []
    if (agreement or 0.0) < float(min_agreement):
        why = "the two do not have the same labels" if agreement is None else f"agreement {_figure(agreement)}"
        found.append(f"{why}, and at least {min_agreement} is wanted")
    for name, pair, sign, limit in (
        ("confidence", confidence, -1, max_confidence_drop),
        ("share of unknown windows", unknown, 1, max_unknown_increase),
    ):
        if pair["new"] is None or pair["old"] is None or sign * (pair["new"] - pair["old"]) > float(limit):
            way = "lower" if sign < 0 else "more"
            found.append(f"{name} {_figure(pair['old'])} -> {_figure(pair['new'])}, and {limit} {way} is allowed")
    return "; ".join(found)


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Return the filters of this file by name."""
        return {"har_figures": figures, "har_excess": excess}
