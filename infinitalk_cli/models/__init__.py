"""The networks: sizes and `nn.Module`s, arithmetic only. No files, no environment, no choice of device."""
