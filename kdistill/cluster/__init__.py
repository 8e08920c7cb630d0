"""Where work on many blocks of rows, on many networks or on one is done: in this process, or by workers of a Ray cluster.

`engine` has the interface and the engine that works in this process. `on_ray` is the engine on Ray, with the training of
one network in `ray_training`; only these and what they share, `ray_calls`, import Ray.
"""

from __future__ import annotations

from kdistill.cluster.engine import ClusterError, Engine, InProcess, Work
from kdistill.settings import Cluster

__all__ = ["ClusterError", "Engine", "InProcess", "Work", "engine"]


def engine(settings: Cluster) -> Engine:
    """Return the engine that settings name. It starts when its context is entered.

    Raises:
        KdistillError: if Ray is not installed.
    """
    if settings.ray is None:
        return InProcess()
    from kdistill.cluster.on_ray import RayEngine

    return RayEngine(settings)
