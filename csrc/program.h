// Adds the class Program, of programs of phases, to a Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace fastrnn {

void add_program(pybind11::module_& m);

}  // namespace fastrnn
