"""The inference engine: a supervised subprocess that runs ONNX models item by item."""
