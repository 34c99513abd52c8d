"""The devices that compute tiles."""

from __future__ import annotations

import operator

import jax

from widelimit.typing import Devices


def resolve_devices(devices: Devices) -> list[jax.Device]:
    """Returns the devices that tiles are computed on.

    Args:
      devices: None for all local devices of the default backend, a number of them, or a list.

    Raises:
      TypeError: the argument is none of these.
      ValueError: more devices than exist, no devices, a repeated device, or several platforms.
    """
    local = jax.local_devices()
    if devices is None:
        return local
    if isinstance(devices, list | tuple):
        return _checked(list(devices))
    try:
        count = operator.index(devices)
    except TypeError:
        count = None
    if count is None or isinstance(devices, bool):
        raise TypeError(
            f"expected devices=None, a number of devices, or a list of jax.Device, got {devices!r}"
        )
    if not 1 <= count <= len(local):
        raise ValueError(
            f"expected between 1 and {len(local)} devices, as many as {local[0].platform} has "
            f"here, got {count}"
        )
    return local[:count]


def _checked(devices: list[jax.Device]) -> list[jax.Device]:
    for device in devices:
        if not isinstance(device, jax.Device):
            raise TypeError(f"expected a list of jax.Device, got {device!r} in it")
    if not devices or len(set(devices)) < len(devices):
        raise ValueError(f"expected at least one device, and each once, got {devices}")
    platforms = sorted({device.platform for device in devices})
    if len(platforms) > 1:
        raise ValueError(f"expected devices of one platform, got {', '.join(platforms)}")
    return devices
