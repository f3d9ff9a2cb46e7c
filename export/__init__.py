"""PyTorch checkpoints in, bundles out. Needs torch; `runtime` never imports this package."""
