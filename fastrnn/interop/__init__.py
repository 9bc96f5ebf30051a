"""Weights from elsewhere and back: Keras's recurrent layers, ONNX's recurrent nodes.

Needs nothing of Keras: its weights are arrays.  The ONNX half needs the package ``onnx``, the extra ``interop``.
"""

from fastrnn.interop.keras import from_keras, keras_options, keras_weights, load_keras_weights
from fastrnn.interop.onnx import FromOnnx, Reversed, from_onnx, to_onnx
from fastrnn.interop.onnx_export import onnx_translations

__all__ = [
    "FromOnnx",
    "Reversed",
    "from_keras",
    "from_onnx",
    "keras_options",
    "keras_weights",
    "load_keras_weights",
    "onnx_translations",
    "to_onnx",
]
