"""Weights of 8 bits for inference on a CPU: the modules that :func:`fastrnn.quantize_dynamic` puts in.

What a matrix of 8 bits is, and its product, says :mod:`fastrnn.cell.int8`; biases, gates, h and c are float32.  A step
then reads a quarter of the bytes.  The equations else are those of :mod:`fastrnn.modes`.  A NaN or an infinity in what
is rounded makes all gates of that row and step NaN.

``W_ih`` of the first layer may stay float32, with an input that is not rounded: features whose sizes are orders of
magnitude apart, such as the powers of a spectrum, lose the small ones where a row is rounded by its largest.  By
default it does where that costs little, in modules whose state is at least four times as wide as their input;
``float_input`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import options
from fastrnn.backends import cpp, cpp_tensors
from fastrnn.cell.int8 import quantize
from fastrnn.cell_modules import step
from fastrnn.checks import Sizes, shapes_misfit, steps_misfit
from fastrnn.dynamo import left_to_python
from fastrnn.modes import CELLS
from fastrnn.narrow import Narrow, as_float, floats, stays_float
from fastrnn.running import run, unexpected
from fastrnn.storage import require_memory
from fastrnn.walk import Path


class _Errors:
    """What :func:`fastrnn.running.run` calls where an argument has not the form of one, in torch.nn's words."""

    @staticmethod
    def forward(module: Any, input: Any, hx: Any) -> Any:
        kind = module.mode.split("_")[0]
        if not isinstance(input, (Tensor, nn.utils.rnn.PackedSequence)):
            raise TypeError(f"{kind}: Expected input to be a Tensor or a PackedSequence, got {type(input).__name__}")
        if isinstance(input, Tensor) and input.dim() not in (2, 3):
            raise ValueError(f"{kind}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        wanted = "a pair of tensors" if CELLS[module.mode].has_cell_state else "a tensor"
        given = hx if isinstance(hx, (tuple, list)) else [hx]
        shapes = [tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__ for h in given]
        raise RuntimeError(f"{kind}: Expected hx to be {wanted}, 2-D for one sequence, else 3-D, got {shapes}")


class _Int8(options.NoOptions, Narrow):
    """What the modules below share: torch.nn's weights, with 8 bits."""

    input_size: int
    hidden_size: int
    bias: bool

    def __init__(self, float_module: Any, float_input: bool | None = None) -> None:
        super().__init__()
        own = float_module
        self.input_size, self.hidden_size, self.bias = own.input_size, own.hidden_size, own.bias
        self.float_input: bool = stays_float(own, float_input)
        self._order: list[str] = []

    def _take(self, own: nn.Module, end: str = "", projected: bool = False, first: bool = True) -> None:
        """The weights of a cell or of one direction of one layer, in the order in which the core reads them."""
        biases = ("bias_ih", "bias_hh") if self.bias else ()
        for kind in ("weight_ih", "weight_hh", *biases, *(("weight_hr",) if projected else ())):
            tensor = floats(own, f"{kind}{end}")
            if kind.startswith("bias"):
                found = {kind: tensor.detach().clone()}
            else:
                stays = kind == "weight_ih" and first and self.float_input
                scales, values = as_float(tensor) if stays else quantize(tensor)
                found = {kind.replace("weight", "scale"): scales, kind: values}
            for name, value in found.items():
                self.register_buffer(f"{name}{end}", value)
                self._order.append(f"{name}{end}")

    @property
    def _flat_weights(self) -> list[Tensor]:
        buffers: Any = self._buffers  # nn.Module's own way to an attribute takes 7 of the 43 us of a small step
        return [buffers[name] for name in self._order]

    def extra_repr(self) -> str:
        options = ("num_layers", 1), ("bias", True), ("batch_first", False), ("bidirectional", False), ("proj_size", 0)
        options += ("nonlinearity", "tanh"), ("float_input", False)
        given = [(name, getattr(self, name, default), default) for name, default in options]
        changed = [f"{name}={value}" for name, value, default in given if value != default]
        return ", ".join([str(self.input_size), str(self.hidden_size), *changed])


class _Quantized(_Int8):
    """RNN, LSTM or GRU with weights of 8 bits: forward only, float32, on a CPU; see :mod:`fastrnn.quantized`.

    Built by :meth:`from_float` and :func:`quantize_dynamic`.  Arguments and results of a call are those of the module
    that it was made from; results have no gradient.  It has the sizes and ``flatten_parameters`` of torch.nn's modules
    but is, as torch's own quantized ones, no instance of their classes: code that asks for one, as initialisers do,
    would write to weights that are no parameters.  Its buffers, which make its ``state_dict``, are for each layer and
    direction ``weight_ih``, ``weight_hh`` and, with a projection, ``weight_hr``, int8, their rows' ``scale_ih``,
    ``scale_hh`` and ``scale_hr``, and the biases, float32, with torch.nn's endings.  With ``float_input`` the
    ``weight_ih`` of the first layer is float32, its scales 1.
    """

    mode: str
    proj_size: int
    dropout: float
    num_layers: int
    batch_first: bool
    bidirectional: bool

    def __init__(self, float_module: nn.RNNBase, float_input: bool | None = None) -> None:
        super().__init__(float_module, float_input)
        own = float_module
        self.mode, self.proj_size, self.dropout = own.mode, own.proj_size, 0.0
        self.num_layers, self.batch_first, self.bidirectional = own.num_layers, own.batch_first, own.bidirectional
        if own.mode.startswith("RNN"):
            self.nonlinearity: str = own.mode.removeprefix("RNN_").lower()
        self._flat_weights_names: list[str] = []  # of parameters, which there are none of
        for layer in range(own.num_layers):
            for end in ("", "_reverse")[: 1 + own.bidirectional]:
                self._take(own, f"_l{layer}{end}", bool(own.proj_size), layer == 0)

    def flatten_parameters(self) -> None:
        """Nothing, as torch.nn's on a CPU; some models call it before every forward."""

    def forward(self, input: Any, hx: Any = None, **others: Any) -> Any:
        """The output and the last states, as of the module in float32.

        Raises:
            TypeError: there is another argument.
            ValueError, RuntimeError: as torch.nn's, where shapes do not fit; the input is not float32 on the CPU.
        """
        if isinstance(others, dict) and others:  # a proxy where torch.fx traces the module itself
            raise unexpected(
                self, others, "a module of 8 bits takes input and hx alone, and is none of torch.nn's classes"
            )
        if not torch.compiler.is_compiling() and (result := cpp.fast_path_int8(self.__dict__, input, hx)) is not None:
            return result
        self._check_that_kernels_may_run()
        with torch.no_grad(), torch._C._DisableAutocast():
            return run(self, _Errors, input, hx, planned=_plan)


class _QuantizedCell(_Int8):
    """RNNCell, LSTMCell or GRUCell with weights of 8 bits: forward only, float32, on a CPU; see
    :mod:`fastrnn.quantized`.

    Built by :meth:`from_float` and :func:`quantize_dynamic`.  Arguments, results and errors of a call are those of the
    module that it was made from; results have no gradient.  Its buffers, which make its ``state_dict``, are
    ``weight_ih`` and ``weight_hh``, int8, their rows' ``scale_ih`` and ``scale_hh``, and the biases, float32; with
    ``float_input`` ``weight_ih`` is float32, its scales 1.
    """

    bias_ih: Tensor | None
    bias_hh: Tensor | None
    _mode: str

    def __init__(self, float_module: nn.Module, float_input: bool | None = None) -> None:
        super().__init__(float_module, float_input)
        self._take(float_module)
        if not self.bias:  # torch.nn's forward, which raises the errors, asks for them
            self.bias_ih = self.bias_hh = None

    def forward(self, input: Any, hx: Any = None) -> Any:
        """The next state, of an LSTM ``(h, c)``, as of the module in float32.

        Raises:
            ValueError, RuntimeError: as torch.nn's, where shapes do not fit; a tensor is not float32 on the CPU.
        """
        if not torch.compiler.is_compiling():
            if (result := cpp.fast_path_int8(self.__dict__, input, hx, self._mode)) is not None:
                return result
        self._check_that_kernels_may_run()
        with torch.no_grad(), torch._C._DisableAutocast():
            return step(self, self._float, self._mode, input, hx, planned=_plan_cell)


left_to_python(_Quantized.forward)
left_to_python(_QuantizedCell.forward)


def _plan(
    mode: str, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None, weights: Any, sizes: Sizes
) -> Path:
    if x.dtype is not torch.float32 or not x.is_cpu:
        raise ValueError(f"expected an input of float32 on the CPU, got {x.dtype} on {x.device}")
    rows = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
    if problem := steps_misfit(x, batch_sizes) or shapes_misfit(mode, x, rows, h0, c0, (), sizes, ()):
        raise problem
    return _layer


def _plan_cell(
    mode: str, x: Tensor, batch_sizes: None, h0: Tensor, c0: Tensor | None, weights: Any, sizes: Sizes
) -> Path | Exception:
    for tensor in (x, h0) if c0 is None else (x, h0, c0):
        if tensor.dtype is not torch.float32 or not tensor.is_cpu:
            raise ValueError(f"expected input and state of float32 on the CPU, got {tensor.dtype} on {tensor.device}")
    return shapes_misfit(mode, x, x.shape[1], h0, c0, (), sizes, ()) or _layer


def _layer(
    mode: str, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    require_memory(x, h0, c0, *weights)
    y = h0.new_empty((*x.shape[:-1], h0.shape[0] * h0.shape[2]))
    hn = torch.empty_like(h0, memory_format=torch.contiguous_format)
    cn = h0.new_empty(0) if c0 is None else torch.empty_like(c0, memory_format=torch.contiguous_format)
    if h0.shape[1]:
        layer = cpp_tensors.layer_sizes(mode, x, batch_sizes, h0, weights[1])
        # numbers may be stored with the wrong sign, of which only operators know
        c_first = None if c0 is None else c0.resolve_neg().contiguous()
        x, h_first = x.resolve_neg().contiguous(), h0.resolve_neg().contiguous()
        own = [weight.resolve_neg().contiguous() for weight in weights]
        cpp.forward_int8(layer=layer, x=x, h0=h_first, c0=c_first, weights=own, y=y, hn=hn, cn=cn)
    return y, hn, cn, cn


class QuantizedRNN(_Quantized):
    __doc__ = _Quantized.__doc__
    _float = nn.RNN


class QuantizedLSTM(_Quantized):
    __doc__ = _Quantized.__doc__
    _float = nn.LSTM


class QuantizedGRU(_Quantized):
    __doc__ = _Quantized.__doc__
    _float = nn.GRU


class QuantizedRNNCell(_QuantizedCell):
    __doc__ = _QuantizedCell.__doc__
    _float = nn.RNNCell

    def __init__(self, float_module: nn.RNNCell, float_input: bool | None = None) -> None:
        super().__init__(float_module, float_input)
        self.nonlinearity: str = float_module.nonlinearity
        self._mode = f"RNN_{self.nonlinearity.upper()}"
        if self._mode not in CELLS:
            raise ValueError(f"Unknown nonlinearity: {self.nonlinearity}")


class QuantizedLSTMCell(_QuantizedCell):
    __doc__ = _QuantizedCell.__doc__
    _float, _mode = nn.LSTMCell, "LSTM"


class QuantizedGRUCell(_QuantizedCell):
    __doc__ = _QuantizedCell.__doc__
    _float, _mode = nn.GRUCell, "GRU"
