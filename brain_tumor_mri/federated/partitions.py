"""Who holds which slice in a simulated federation. No patient, and no group of near-copies, is in two hospitals.

``partition("collection", sources, labels, groups)`` gives each hospital's rows by its name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import UserError


def partition(
    method: str,
    sources: Sequence[str],
    labels: Sequence[int],
    groups: Sequence[str],
    *,
    clients: int | None = None,
    alpha: float = 0.5,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Divide N slices among hospitals.

    Args:
        method: ``collection`` (each collection is a hospital: other scanners, other patients), ``patient`` (patients
            drawn at random: all alike), ``dirichlet`` (each class by shares from a Dirichlet distribution: Hsu et al.
            2019), or ``pooled`` (one hospital with everything, which federations are compared with).
        sources: the collection of each slice.
        labels: the label of each slice.
        groups: the patient, or group of near-copies, of each slice; names are unique within a collection.
        clients: hospitals, for ``patient`` and ``dirichlet``.
        alpha: of the Dirichlet distribution, the same for every hospital.
        seed: of what is drawn.

    Returns:
        Rows in ascending order, (n,) int64, by the hospital's name, in the names' order.
    """
    source = np.asarray(sources)
    if method == "pooled":
        return {"pooled": np.arange(len(source))}
    if method == "collection":
        return {name: np.flatnonzero(source == name) for name in np.unique(source).tolist()}
    names, first, members = np.unique(
        [f"{s} {g}" for s, g in zip(sources, groups, strict=True)], return_index=True, return_inverse=True
    )
    assert clients is not None
    if len(names) < clients:
        raise UserError(f"clients: {clients}: there are {len(names)} patients, too few for as many hospitals")
    draw = np.random.default_rng(seed)
    if method == "patient":
        holder = _evenly(np.bincount(members), clients, draw)
    else:
        holder = _skewed(np.bincount(members), np.asarray(labels)[first], clients, alpha, draw)
    return {f"hospital-{k + 1}": np.flatnonzero(holder[members] == k) for k in range(clients)}


def _evenly(sizes: np.ndarray, clients: int, draw: np.random.Generator) -> np.ndarray:
    """The hospital of each group: groups in random order, each to the hospital with the fewest slices so far."""
    holder, held = np.empty(len(sizes), int), np.zeros(clients, int)
    for group in draw.permutation(len(sizes)):
        holder[group] = held.argmin()
        held[holder[group]] += sizes[group]
    return holder


def _skewed(sizes: np.ndarray, labels: np.ndarray, clients: int, alpha: float, draw: np.random.Generator) -> np.ndarray:
    """The hospital of each group: of every class, groups in random order are cut at the drawn shares of its slices."""
    holder = np.empty(len(sizes), int)
    for label in np.unique(labels):
        ours = draw.permutation(np.flatnonzero(labels == label))
        cuts = draw.dirichlet([alpha] * clients).cumsum()[:-1] * sizes[ours].sum()
        middles = sizes[ours].cumsum() - sizes[ours] / 2
        holder[ours] = np.searchsorted(cuts, middles)
    for empty in set(range(clients)) - set(holder.tolist()):  # nobody is left without a patient
        holder[np.flatnonzero(holder == np.bincount(holder).argmax())[0]] = empty
    return holder
