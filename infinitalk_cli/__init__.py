"""Talking videos from a picture and speech: the `talk` command and the engine behind it."""

__version__ = "0.1.0"
