"""Evaluation: metrics, confidence intervals, sweep statistics and figures. No TensorFlow."""
