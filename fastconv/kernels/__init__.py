"""The kernel contract.

A kernel is a *task function* ``task(params, t, tasks)``, made for float32 and float64, and some for ints, by
a factory that closes over plain numbers alone (`fastconv.jit.Kernel`). It

- reads its arguments from the record at address `params` (`fastconv.jit.fields`): addresses of arrays,
  sizes, strides in elements. The record's field names are documented where it is defined;
- divides its work into independent *units* and does those from ``t * units // tasks`` up to
  ``(t + 1) * units // tasks``. Different units write different cells, and the order of additions into one
  cell does not depend on `tasks`: so the result has the same bits whatever the number of threads;
- trusts its arguments. Everything is checked before, in Python (`fastconv.shapes`,
  `fastconv.functional`): a kernel has no bounds checks;
- allocates nothing, raises nothing and keeps no state.

Arrays are seen as pointers with one stride per logical axis (n, c, z, y, x), so that a kernel works
for channels-first and channels-last memory alike.
"""
