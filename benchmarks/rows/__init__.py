"""The measurements, one small file a group. Each takes the lab and a peer and returns its numbers."""
