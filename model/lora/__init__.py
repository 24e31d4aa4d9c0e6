"""Fuses LoRAs and their relatives into the weights of a checkpoint while they are streamed one at a time.

`read` finds the weights that a file changes, from headers alone; each `update` reads its factors when it is applied.
"""
