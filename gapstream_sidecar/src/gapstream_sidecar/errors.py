"""What the sidecar tells its caller; everything else it keeps to itself, counts and logs.

``SidecarError``
  ``ConfigurationError`` - the arguments of ``Sidecar`` can't work: mend them.
  ``UnsupportedError`` - this version can't follow that client or method: see the sentence for what to do instead.
"""

from __future__ import annotations


class SidecarError(Exception):
    """Base of all errors of this package."""


class ConfigurationError(SidecarError, ValueError):
    """The arguments of ``Sidecar`` can't work; raised when it is made, never later."""


class UnsupportedError(SidecarError, TypeError):
    """This version can't tell what the application has received that way."""
