"""The service: HTTP in words of quality, the Open Inference Protocol, metrics."""
