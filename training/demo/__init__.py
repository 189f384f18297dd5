"""The demo's weights: invented people, synthetic speech, and small networks trained on both.

Nothing here is installed with the package. `README.md` in this folder says how a run goes and what came of it.
"""
