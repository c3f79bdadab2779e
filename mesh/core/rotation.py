"""Which of two secrets signs while a mesh moves from one to the other.

Every process that has both believes what either has signed. So it is safe to sign with the old one until everybody knows the new
one, and with the new one until nobody lacks it: any order of restarts within "old -> both" and within "both -> new" goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

__all__ = ["sign_with"]


def sign_with(kids: Sequence[str], others: Iterable[Collection[str]]) -> str:
    """The kid to sign with. `kids`: of this process, the secret in force first; `others`: what each live coordinator and agent
    of the mesh says that it knows, nothing if it says nothing.

    The coming one once all know it, or one does not know the old one any more; nobody at all knows nothing.
    """
    if len(kids) < 2:
        return kids[0]
    old, new = kids[0], kids[1]
    told = [frozenset(one) for one in others]
    dropped = any(one and old not in one for one in told)
    return new if dropped or (told and all(new in one for one in told)) else old
