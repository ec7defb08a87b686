"""edge-runtime: parked cars as an inference service, the owner first."""

__version__ = "0.1.0"
