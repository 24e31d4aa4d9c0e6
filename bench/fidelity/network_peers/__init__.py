"""Peers that run networks of their own: another library's quantized modules or graphs, rounded inputs included."""
