"""Networks for other programs: safetensors, torch.export, ONNX, VNN-LIB, the Hugging Face Hub, RobustBench.

Every file is checked against the network that it was made from, on clean and on adversarial test images.
"""
