"""Models for other programs' use: safetensors, PEFT adapters, GGUF and ONNX, compared with the original."""
