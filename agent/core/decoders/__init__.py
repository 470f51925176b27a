"""Decoders: bytes in, `SampleBatch` or `BadFrame` out. One protocol a file."""
