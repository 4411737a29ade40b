"""Networks for other programs: safetensors, torch.export, ONNX, VNN-LIB, the Hugging Face Hub, RobustBench.

Every file is checked against the network that it was made from, on clean and on adversarial test images.
"""

FORMATS = {
    "safetensors": "weights with what builds their network again, for `atent.load`, `atent evaluate` and any reader",
    "torch-export": "a program of torch.export (.pt2), which runs without the network's code",
    "onnx": "an ONNX network with a dynamic batch, checked by onnxruntime",
    "vnnlib": "a folder for verification tools: ONNX, one VNN-LIB property for each image, instances.csv",
    "hub": "the folder of a Hugging Face Hub repository: weights, configuration, results, model card",
    "robustbench": "a model entry of RobustBench (JSON)",
}
"""The formats, and what each writes."""
