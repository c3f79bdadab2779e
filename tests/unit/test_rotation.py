"""Which of two secrets signs, in every state that a mesh can be in between `old` and `new`."""

from __future__ import annotations

import itertools

import pytest

from mesh.core.rotation import sign_with

OLD, BOTH, NEW, SILENT = ("old",), ("old", "new"), ("new",), ()


def test_who_has_one_secret_signs_with_it() -> None:
    for others in ([], [OLD], [BOTH, NEW], [SILENT]):
        assert sign_with(OLD, others) == "old" and sign_with(NEW, others) == "new"


@pytest.mark.parametrize(
    ("others", "kid"),
    [
        ([], "old"),
        ([BOTH], "new"),
        ([BOTH, BOTH], "new"),
        ([OLD], "old"),
        ([BOTH, OLD], "old"),
        ([BOTH, NEW], "new"),
        ([NEW], "new"),
        ([BOTH, SILENT], "old"),
        ([SILENT], "old"),
    ],
)
def test_the_coming_one_once_all_know_it(others: list[tuple[str, ...]], kid: str) -> None:
    assert sign_with(BOTH, others) == kid == sign_with(BOTH, others[::-1])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("step", [(OLD, BOTH), (BOTH, NEW)])
def test_what_anybody_signs_everybody_verifies_in_any_order_of_restarts(
    size: int, step: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    """Each process may be before or after its restart: all states that any order passes through."""
    for mesh in itertools.product(step, repeat=size):
        for signer in mesh:
            kid = sign_with(signer, mesh)
            assert all(kid in verifier for verifier in mesh), (mesh, signer)


def test_without_asking_who_knows_it_some_would_refuse() -> None:
    """Teeth: always the first, or always the last one, is refused in some state."""
    for always in (0, -1):
        refused = [
            mesh
            for step in ((OLD, BOTH), (BOTH, NEW))
            for mesh in itertools.product(step, repeat=2)
            for signer in mesh
            if not all(signer[always] in verifier for verifier in mesh)
        ]
        assert refused
