"""Which MuJoCo releases the simulated environments accept, and why.

From 3.4.0 on box collisions are computed differently: the bowl of libero_spatial task 5 no longer comes to
rest on the ramekin it is stored on, and published numbers cannot be repeated. Below 3.3 nothing was tried.
"""

from __future__ import annotations

SUPPORTED = ">=3.3,<3.4"
_LOWEST, _BEYOND = (3, 3), (3, 4)


def require_supported_mujoco(allow: bool = False) -> dict[str, object]:
    """Refuse a MuJoCo outside the supported range, unless `allow`; the facts to write into every episode's row.

    The facts are empty inside the range, so that rows of an ordinary run carry nothing extra.
    """
    import mujoco  # late: the renderer must be chosen before its first import

    version: str = mujoco.__version__
    major, minor = (int(part) for part in version.split(".")[:2])
    if _LOWEST <= (major, minor) < _BEYOND:
        return {}
    if not allow:
        raise RuntimeError(
            f"mujoco: expected {SUPPORTED}, got {version}; from 3.4 on box collisions differ, stored initial states no "
            'longer settle and published numbers cannot be repeated; pip install "mujoco>=3.3,<3.4", or accept '
            "results that compare with nothing by env.allow_mujoco=true"
        )
    return {"mujoco_override": version}
