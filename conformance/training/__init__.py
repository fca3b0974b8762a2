"""How the checkpoints that the package ships were trained: ``python -m conformance.training.tiny_vision`` and so on."""
