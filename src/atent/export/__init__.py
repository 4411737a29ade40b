"""Networks for other programs: safetensors, torch.export, ONNX, VNN-LIB, the Hugging Face Hub, RobustBench.

Every file is compared with the original network on clean and on adversarial test images.
"""
