"""All that a trained model needs to inspect images; imports numpy, Pillow, simplejpeg, ONNX Runtime and pydantic, never
torch."""
