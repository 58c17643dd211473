"""Packed storage: an artifact as one `.tfopt` file in which zeros, few bits and shared values cost little."""

from tfopt.archive.archive import Packed, check, pack, sizes, unpack

__all__ = ["Packed", "check", "pack", "sizes", "unpack"]
