"""The pipeline on an NVIDIA GPU: device buffers, streams and graphs through cuda-core."""
