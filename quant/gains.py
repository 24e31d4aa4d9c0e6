"""gains"""

GAINS: dict[str, float] = {}
