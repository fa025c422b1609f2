"""placeholder"""


def bench_loop(*a): ...
