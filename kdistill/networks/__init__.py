"""Networks: build them by name, save and load them, shift their biases, and export them.

This package re-exports nothing, so that a module without TensorFlow, e.g. `sources`, can be imported without it.
"""
