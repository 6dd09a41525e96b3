"""Benchmarks: fastconv against other ways to compute the same, on layers of real networks.

Run, at the root of the repository::

    pytest --benchmark-only                        # some minutes; ratios in extra_info
    pytest --benchmark-only --benchmark-json=results.json
    python benchmarks/table.py results.json --markdown --plot roofline.png
    pytest --benchmark-only --peers=all -k "r50 and forward"    # also onnxruntime, openvino ..
    python benchmarks/first_call.py                # what the first call of a process costs
    python benchmarks/scaling.py                   # times on 1, 2, .. all threads
    python benchmarks/steps.py                     # one layer, from loops in Python to Winograd

Plain ``pytest`` runs every case once and checks its results, without timing.

What is compared
----------------
Each case is one operation on one layer (`benchmarks.layers`). All contenders (`benchmarks.peers`) get the
same random arrays, their first results are checked against float64 NumPy, and only then are they timed,
interleaved (`benchmarks.race`): a ratio comes from one process and one span of time. Weights are prepacked by
onnxruntime, openvino and opencv, which do so when the session, model or net is made, and by "fastconv
prepacked". Peers that are not installed are named as such.

In the same rounds runs a yardstick (`benchmarks.yardsticks`): for a convolution the micro-kernel on panels in
the L1 cache on all threads, the peak of its multiply-adds; for a pooling a NumPy copy of the same arrays.
Tables give fastconv's GFLOP/s or GB/s, and what part of the yardstick's that is. A plot
(`benchmarks.roofline`) has all contenders under what the yardstick and memory allow.

What is left out
----------------
Slow contenders are timed only on small layers, else a run would take hours: NumPy up to 500 MFLOP a call,
scipy (forward only) and fastconv's reference loops ("naive") up to 20 MFLOP; in poolings NumPy and the
algorithms that fastconv does not choose up to 10 million taps. The algorithm that it chooses by itself is
not timed a second time under its name. Tables name every contender that is left out of a layer, and why.

``--peers=NAMES`` picks the peers: some of those in `benchmarks.peers.PEERS`, separated by commas, or "all" or
"none". Without it numpy, scipy and torch take part, and all cases take less than 5 minutes; the others
compile something for each case.

Settings
--------
``--benchmark-max-time=SECONDS`` is about the time for each case, 1 second unless told; 3 or more give
steadier medians. ``--benchmark-min-rounds`` (5 unless told) counts before it. But a session that falls
behind gives its next cases a single round, so that it ends in time; tables print the rounds.

Set the environment variables of `benchmarks.conditions.FAIR` before Python starts. Without the first two the
allocator returns each large result to the system, and whoever allocates it next pays for the page faults.
Without the third, OpenBLAS's idle threads keep a core busy while the next contender runs. Tables print which
were set. ``NUMBA_NUM_THREADS`` sets the threads of all contenders.
"""
