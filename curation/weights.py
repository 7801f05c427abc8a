"""What each measure counts for a gradual transition; written by benchmarks/fit_transitions.py.

``name: (steps, weights)``: weights[0] below the first step, weights[1] up to the second, and so on.

A transition counts more than the limit in all.
"""

LIMIT = 12.47
WEIGHTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "change": ((3.08, 4.07), (0.1, 0.2, 0.0)),
    "more than in half the time at rest": ((1.19, 1.86, 2.47), (0.0, 0.1, 0.2, 0.3)),
    "more than in the time around": ((0.23, 0.48), (0.0, 0.3, 0.9)),
    "covers": ((0.66,), (0.0, 0.1)),
    "colours": ((0.17, 0.27), (0.0, 0.1, 1.3)),
    "hues": ((0.43, 0.52, 0.7, 0.84), (0.0, 1.3, 1.8, 2.4, 2.9)),
    "alike": ((0.23, 0.29), (0.7, 0.3, 0.0)),
    "relit": ((), (0.0,)),
    "largest step": ((0.08, 0.11, 0.15, 0.19, 0.31), (4.2, 3.8, 3.7, 2.9, 2.6, 0.0)),
    "mixture": ((0.05, 0.27, 0.43, 0.75), (0.0, 0.3, 1.2, 1.8, 2.0)),
    "stranger than at rest": ((0.13, 0.43, 0.54, 0.88, 1.34), (0.0, 1.3, 2.7, 3.0, 3.5, 3.6)),
    "strange": ((1.56, 2.67), (0.0, 0.6, 0.1)),
    "unexplained share": ((0.49, 0.7, 0.82, 0.91), (0.5, 0.0, 0.6, 1.2, 1.6)),
}
