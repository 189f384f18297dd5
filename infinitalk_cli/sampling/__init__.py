"""The mathematics of sampling: schedule, guidance, caching, the loop over steps and the loop over chunks.

Networks come in as arguments; nothing here reads a file, looks for a device or knows a hardware profile.
"""
