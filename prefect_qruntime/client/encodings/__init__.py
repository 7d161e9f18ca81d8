"""Encodings of the wire: arrays, tensors and registers of bits, without numpy."""
