// Adds what tells of teams of threads to a Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace fastrnn {

void add_teams(pybind11::module_& m);

}  // namespace fastrnn
