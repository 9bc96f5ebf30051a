// The engine of programs, compiled once per instruction set, by the rules of kernels.cpp.
#include "phases-inl.h"

namespace fastrnn {
namespace FASTRNN_NAMESPACE {

void run_program(const Run& run) {
  Team team(run.threads);
  while (!(run.program->is_double ? run_phases<double>(run, team) : run_phases<float>(run, team))) {
  }
}

}  // namespace FASTRNN_NAMESPACE
}  // namespace fastrnn
