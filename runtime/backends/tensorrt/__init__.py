"""The backend of a bundle's compiled engines: TensorRT for RTX and TensorRT."""
