// The forward of a module as one call from Python, for the ordinary case without gradients: what a step of a stream
// takes beyond its kernel is then a microsecond or two, and the memory for its results.
#pragma once

#include <pybind11/pybind11.h>

namespace fastrnn {

// Adds `fast_path` and `prepare_fast_path` to the module; fastrnn/_core.pyi says what they do.
void add_fast_path(pybind11::module_& module);

}  // namespace fastrnn
