"""The work between a layer's matrix products in C, compiled for this machine when first needed; torch does it where no compiler is."""

from llmpq.native.library import available

__all__ = ["available"]
