"""What each measure counts for a gradual transition, by kind; written by benchmarks/fit_transitions.py.

``name: (steps, weights)``: weights[0] below the first step, weights[1] up to the second, and so on.

A transition counts more than the limit in all.
"""

Table = dict[str, tuple[tuple[float, ...], tuple[float, ...]]]

MOVING_LIMIT = 9.99
MOVING: Table = {
    "change": ((3.5, 4.21), (0.6, 0.2, 0.0)),
    "length": ((), (0.0,)),
    "more than in half the time at rest": ((1.25, 2.01), (0.0, 0.2, 0.3)),
    "more than in the time around": ((0.41, 0.78), (0.0, 0.1, 0.4)),
    "covers": ((0.67, 0.72, 0.83), (0.0, 0.4, 0.4, 0.7)),
    "colours": ((0.3, 0.46, 0.63, 0.79), (0.0, 2.0, 2.5, 3.2, 3.9)),
    "alike": ((0.21, 0.25, 0.27), (1.1, 0.9, 0.2, 0.0)),
    "relit": ((-0.61,), (0.3, 0.0)),
    "largest step": ((0.08, 0.14, 0.19), (1.3, 0.9, 0.7, 0.0)),
    "abrupt": ((0.81,), (0.1, 0.0)),
    "mixture": ((0.02, 0.12, 0.33), (0.0, 0.8, 1.1, 1.4)),
    "stranger than at rest": ((0.06, 0.17, 0.45, 0.76, 1.17), (0.0, 0.1, 1.6, 2.9, 3.8, 4.1)),
    "strange": ((1.24,), (0.0, 0.7)),
    "unexplained share": ((0.24, 0.3, 0.32), (1.5, 1.3, 0.6, 0.0)),
}

MIXED_LIMIT = 14.24
MIXED: Table = {
    "change": ((2.87,), (0.0, 0.3)),
    "length": ((2.94, 3.22), (1.4, 0.8, 0.0)),
    "more than in half the time at rest": ((2.27, 2.58), (0.0, 0.2, 0.5)),
    "more than in the time around": ((0.19, 0.34, 0.63), (0.0, 0.2, 0.6, 1.1)),
    "covers": ((), (0.0,)),
    "colours": ((0.17, 0.27, 0.42), (0.0, 1.9, 3.6, 3.8)),
    "alike": ((0.19, 0.25, 0.32, 0.43), (1.9, 1.2, 0.8, 0.7, 0.0)),
    "relit": ((-1.78, -0.17), (0.1, 0.2, 0.0)),
    "largest step": ((0.07, 0.1, 0.12, 0.15, 0.25, 0.44), (4.5, 4.4, 4.3, 3.9, 2.6, 1.6, 0.0)),
    "abrupt": ((0.24, 0.37), (1.1, 0.7, 0.0)),
    "mixture": ((0.15, 0.31), (0.0, 0.4, 1.1)),
    "stranger than at rest": ((0.21, 0.54, 0.72, 0.89), (0.0, 2.1, 2.5, 2.7, 3.0)),
    "strange": ((1.86,), (0.5, 0.0)),
    "unexplained share": ((0.61, 0.63), (0.0, 0.2, 0.4)),
}
