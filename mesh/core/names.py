"""What may be a name: of a namespace, an agent, a capability, a task type, a queue.

Names become parts of Redis keys, of queue names (capabilities joined by ``+``), of DNS labels and of metric
labels. So the alphabet leaves out everything that one of them gives a meaning to: braces, colons, plus signs,
slashes, blanks. Namespaces and agent ids stand in host names; a namespace is therefore lower case, without dots.
"""

import re

from mesh.errors import Invalid

__all__ = ["NAME", "NAMESPACE", "check_name"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
NAMESPACE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

_LONGEST_SHOWN = 80


def check_name(kind: str, value: str) -> str:
    """Return `value` if it is a legal name for `kind`, else raise `Invalid` with one sentence.

    `kind` is what the sentence calls it: ``"namespace"``, ``"agent id"``, ``"capability"``, ``"task type"``, ...;
    only ``"namespace"`` has a pattern of its own.
    """
    pattern = NAMESPACE if kind == "namespace" else NAME
    if kind == "namespace" and value == "mesh":
        raise Invalid(
            "'mesh' is not a valid namespace: what belongs to the whole mesh is kept under this name."
        )
    if isinstance(value, str) and pattern.fullmatch(value):
        return value
    shown = repr(value)
    if len(shown) > _LONGEST_SHOWN:
        shown = shown[:_LONGEST_SHOWN] + "..."
    letters = (
        "lower-case letters, digits and '-'" if kind == "namespace" else "letters, digits, '.', '_' and '-'"
    )
    raise Invalid(
        f"{shown} is not a valid {kind}: use 1 to 63 {letters}, beginning with a "
        f"{'lower-case letter' if kind == 'namespace' else 'letter'} or a digit."
    )
