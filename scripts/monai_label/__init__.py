"""The server of MONAI Label: `serve` starts it, `web` is what answers there, `app` what the answers come from."""

TRAINED_HERE = "labels submitted to MONAI Label"
"""The name in the record of weights that were trained there."""
