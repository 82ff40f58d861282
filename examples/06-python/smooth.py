"""How wide should a smoother be? Runs inside a VM of the image `python`, and forks that VM.

The parent makes 600 noisy points. Each clone has them in its memory from its first moment on, and
scores a share of the widths by leaving out one point after the other; only scores travel back. Then
the best width is tried on fresh noise, in clones that each draw noise of their own.

    sf image build python
    vm=$(sf launch python)
    sf exec $vm -i -- python3 - 8 <examples/06-python/smooth.py
"""

import math
import random
import sys

import snowfork as sf

clones = int(sys.argv[1]) if len(sys.argv) > 1 else 8
NOISE = 0.3

# A seed of our own: the same points in every run. Fresh noise, below, comes from `random` itself,
# which each clone has renewed when the fork returns.
fixed = random.Random(2009)
points = [(x / 100, math.sin(x / 100) + fixed.gauss(0, NOISE)) for x in range(600)]
widths = [0.01 * 1.5**step for step in range(16)]


def smooth(x, width, left_out=None):
    """The mean of the points around x (Nadaraya and Watson, 1964), but for the one left out."""
    above = below = 0.0
    for index, (at, value) in enumerate(points):
        if index == left_out or abs(at - x) > 3 * width:
            continue
        weight = math.exp(-(((at - x) / width) ** 2) / 2)
        above += weight * value
        below += weight
    return above / below if below > 0 else 0.0


def score(width):
    """The mean squared error of every tenth point as the others foretell it."""
    tried = range(0, len(points), 10)
    return sum((smooth(points[k][0], width, k) - points[k][1]) ** 2 for k in tried) / len(tried)


# A parallel map: functions and data need no packing, as clones have the whole memory.
scores = sf.map(score, widths, clones=clones)
best = min(zip(scores, widths))[1]
for width, found in zip(widths, scores):
    print(f"width {width:6.3f}  error {found:.4f}{'  <- best' if width == best else ''}")

# The same by hand: one call, and it returns in the parent and in each clone.
me, ticket = sf.fork(clones)
if me > 0:
    fresh = [math.sin(x / 10) + random.gauss(0, NOISE) for x in range(60)]
    sf.exit(sum((smooth(x / 10, best) - value) ** 2 for x, value in enumerate(fresh)) / 60)
results = sf.join(ticket)
errors = [clone.get() for clone in results]
mean = sum(errors) / len(errors)
print(f"on fresh noise, {len(set(errors))} times: {mean:.3f} (noise {NOISE**2:.3f})")
