"""torch's own samples of its modules, ``torch.testing._internal.common_modules.module_db``, with fastrnn's classes."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence

import fastrnn

names = pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])


@pytest.fixture(scope="module")
def module_db() -> dict[str, Any]:
    """Each entry under its module's name.  torch's test package warns of packages that it would use, reads the command
    line as its own, and freezes flags that other tests set."""
    pytest.importorskip("expecttest", reason="torch's test package needs the package expecttest")
    frozen = torch.backends.flags_frozen()
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", sys.argv[:1])
        from torch.testing._internal.common_modules import module_db
    torch.backends.__allow_nonbracketed_mutation_flag = not frozen
    return {info.module_cls.__name__: info for info in module_db}


def samples(target, info: Any, dtype: torch.dtype = torch.float64, training: bool = True) -> list[Any]:
    """All samples, packed ones included; a few under the Triton interpreter, which takes milliseconds a step."""
    if reason := target.module.unsupported(target.device, dtype):
        pytest.skip(f"{target.name}: {reason}")
    options = dict(dtype=dtype, requires_grad=True, training=training, with_packed_sequence=True)
    found = list(info.module_inputs_func(info, device=target.device.type, **options))
    assert found
    return found[:: max(1, len(found) // 3)] if target.name == "triton" else found


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, Tensor):
        yield value
    else:
        for part in value:
            yield from tensors(part)


def rebuilt(value: Any, found: Iterator[Tensor]) -> Any:
    """The same arguments of other tensors."""
    if isinstance(value, PackedSequence):
        return PackedSequence(next(found), *value[1:])
    return next(found) if isinstance(value, Tensor) else tuple(rebuilt(part, found) for part in value)


def pair(info: Any, sample: Any, target, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """torch.nn's module and ours, which one seed must give the same parameters."""
    made = []
    for cls in (info.module_cls, getattr(fastrnn, info.module_cls.__name__)):
        torch.manual_seed(0)
        given = sample.constructor_input
        made.append(cls(*given.args, **given.kwargs, device=target.device, dtype=dtype))
    theirs, ours = (dict(module.named_parameters()) for module in made)
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)
    return made[0], made[1]


def scattered(tensor: Tensor) -> Tensor:
    """The same values as every second element of a larger tensor."""
    return torch.stack([tensor.detach(), tensor.detach()], -1)[..., 0].requires_grad_()


@names
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_forward_and_backward(target, module_db, name: str, training: bool):
    """In float64, where rounding does not blur what is compared; test_modules.py judges float32 by its budget."""
    for sample in samples(target, module_db[name], training=training):
        theirs, ours = pair(module_db[name], sample, target)
        arguments = sample.forward_input.args
        results = []
        for module, leaf in ((theirs, torch.clone), (ours, torch.clone), (ours, scattered)):
            module.train(training).zero_grad()
            leaves = [leaf(tensor.detach()).requires_grad_() for tensor in tensors(arguments)]
            with fastrnn.use_backend(target.name):
                outputs = list(tensors(module(*rebuilt(arguments, iter(leaves)))))
                sum(output.square().sum() for output in outputs).backward()
            results.append([*outputs, *(tensor.grad.clone() for tensor in [*leaves, *module.parameters()])])
        torch.testing.assert_close(results[1], results[0])
        torch.testing.assert_close(results[2], results[0])


@names
def test_an_unbatched_sample_equals_a_batch_of_one(target, module_db, name: str):
    """torch's reference function, which each of its samples names."""
    found = [s for s in samples(target, module_db[name]) if not isinstance(s.forward_input.args[0], PackedSequence)]
    for sample in found:
        ours = pair(module_db[name], sample, target)[1]
        arguments = sample.forward_input.args
        with fastrnn.use_backend(target.name):
            torch.testing.assert_close(ours(*arguments), sample.reference_fn(ours, *arguments))


def as_function(module: nn.Module, arguments: Any) -> tuple[Any, list[Tensor]]:
    """A module's outputs as a function of all its inputs and parameters, and these."""
    keys, leaves = [key for key, _ in module.named_parameters()], list(tensors(arguments))

    def outputs(*given: Tensor) -> list[Tensor]:
        parameters = dict(zip(keys, given[len(leaves) :], strict=True))
        return list(tensors(functional_call(module, parameters, rebuilt(arguments, iter(given)))))

    return outputs, [*leaves, *module.parameters()]


@names
def test_gradcheck(target, module_db, name: str):
    for sample in samples(target, module_db[name]):
        outputs, inputs = as_function(pair(module_db[name], sample, target)[1], sample.forward_input.args)
        with fastrnn.use_backend(target.name):
            assert torch.autograd.gradcheck(outputs, inputs, fast_mode=True)


@names
def test_gradgradcheck(target, module_db, name: str):
    """Of the samples with biases, in the order of time, of few rows, and without gradients that are None: what this
    leaves out costs another minute, and test_ops.py has it of the operators.  It comes from the same equations whatever
    the backend: all but one have two samples each."""
    checked = 0
    for sample in samples(target, module_db[name]):
        arguments, options = sample.forward_input.args, sample.constructor_input.kwargs
        rows = next(tensors(arguments)).shape[0]
        if options.get("batch_first") or not options.get("bias", True) or rows > 10:
            continue
        outputs, inputs = as_function(pair(module_db[name], sample, target)[1], arguments)
        with fastrnn.use_backend(target.name):
            assert torch.autograd.gradgradcheck(outputs, inputs, fast_mode=True, check_undefined_grad=False)
        checked += 1
        if checked == 2 and target.name != "cpp":
            break
    assert checked >= 2


@names
def test_pickle(target, module_db, name: str):
    for sample in samples(target, module_db[name], torch.float32)[::4]:
        module = pair(module_db[name], sample, target, torch.float32)[1]
        buffer = io.BytesIO()
        with fastrnn.use_backend(target.name):
            before = module(*sample.forward_input.args)
            torch.save(module, buffer)
            buffer.seek(0)
            twin = torch.load(buffer, weights_only=False)
            after = twin(*sample.forward_input.args)
        assert type(twin) is type(module)
        assert all(torch.equal(a, b) for a, b in zip(tensors(after), tensors(before), strict=True))


@names
def test_error_inputs(target, module_db, name: str):
    info = module_db[name]
    if info.module_error_inputs_func is None:
        pytest.skip("this torch lists no errors of the module")
    options = dict(device=target.device.type, dtype=torch.float32, requires_grad=False, training=True)
    found = info.module_error_inputs_func(info, **options)
    assert found
    for error in found:
        given = error.module_error_input.constructor_input
        with pytest.raises(error.error_type, match=error.error_regex), fastrnn.use_backend(target.name):
            module = getattr(fastrnn, name)(*given.args, **{"device": target.device} | given.kwargs)
            if error.error_on.name == "FORWARD_ERROR":
                module(*error.module_error_input.forward_input.args)
