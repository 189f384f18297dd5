"""Files on one side, arrays on the other: sound, pictures, videos, and the mp4 that is written.

Nothing here knows a network. Everything streams: no function holds a whole sound track or a whole video in memory.
"""
