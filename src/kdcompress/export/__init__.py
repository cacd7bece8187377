"""From a trained network to one ONNX file whose gate skips members, and back from that file.

Needs the extra ``onnx``. Members are exported one by one (``members``), joined into one graph (``compose``), on request
quantized before that (``quantize``), compared with PyTorch (``verify``), and loaded by ONNX Runtime (``onnx_network``).
"""
