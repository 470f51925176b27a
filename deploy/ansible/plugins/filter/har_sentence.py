"""`har_sentence`: why a task failed, in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

DOCUMENTATION = """
  name: har_sentence
  short_description: Why a task failed, in one line
  description:
    - Takes the result of a failed or unreachable task, as C(ansible_failed_result) is one.
    - Prefers what the program itself says over what Ansible says of it, which is the state and the reasons where it
      printed a status, and else the last line of its stderr, without the name of C(har-agent-release) before it. Of a
      loop, the first item that failed tells.
  options:
    _input:
      description: The result of the task.
      type: dict
      required: true
"""

EXAMPLES = """
- name: Keep the reason
  ansible.builtin.set_fact:
    reason: "{{ ansible_failed_result | har_sentence }}"
"""

RETURN = """
  _value:
    description: One line of at most 600 characters.
    type: str
"""

LONGEST = 600
_WRAPPERS = ("Task failed: ", "Action failed: ", "Module failed: ")


def sentence(result: Mapping[str, Any]) -> str:
    """Return why the task with this result failed, at most `LONGEST` characters on one line."""
    items = result.get("results")
    for item in items if isinstance(items, list) else ():
        if isinstance(item, Mapping) and (item.get("failed") or item.get("unreachable")):
            return sentence(item)
    if "censored" in result:
        return "it is hidden, because secrets are near: look at the board, or run with ANSIBLE_DEBUG"
    text = _said(result) if result.get("rc") else ""
    text = text or str(result.get("msg") or "no reason was given")
    text = " ".join(text.split())
    while text.startswith(_WRAPPERS):
        text = text.partition(": ")[2]
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _said(result: Mapping[str, Any]) -> str:
    """What the program said: its status if it printed one, else the last line of its stderr."""
    try:
        status = json.loads(str(result.get("stdout") or ""))
        reasons = [f"{r['code']}: {r['text']}" for r in status["reasons"]]
        return f"the agent is {status['state']}: " + ("; ".join(reasons) or status["problem"] or "it did not get well")
    except (ValueError, KeyError, TypeError):
        said = str(result.get("stderr") or "").strip().splitlines()
        return said[-1].removeprefix("har-agent-release: ") if said else ""


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Return the filters of this file by name."""
        return {"har_sentence": sentence}
