"""Plain float64 NumPy versions of the system page's equations, written from the page.

They loop over examples, layers, heads and codewords, and see the valid frames of one example only,
so that padding cannot leak into what they return.
"""
