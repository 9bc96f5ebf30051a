// Streams from Python: a step is one call in C of one argument, which makes no object.
#pragma once

#include <pybind11/pybind11.h>

namespace fastrnn {

// Adds `Stream` to the module; fastrnn/_core.pyi says what it does.
void add_stream(pybind11::module_& module);

}  // namespace fastrnn
