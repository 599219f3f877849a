"""Reporting to experiment trackers by name: TensorBoard, Weights & Biases, trackio, MLflow."""
