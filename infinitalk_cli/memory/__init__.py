"""How weights meet the hardware: reading, renaming, 8-bit forms, LoRA, and which device holds what when.

Everything here sees `nn.Module`s and named tensors, never a model of ours by name; `networks.py` puts the two together.
"""
