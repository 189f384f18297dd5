"""One job on several GPUs of a host: every process computes a part of each pass's tokens.

`rank_tokens` divides a pass, `passes` tells the other processes what to compute, `worker` is their program, `team`
starts, watches and ends them. Nothing here knows which network it runs, beyond the arguments of a pass.
"""
