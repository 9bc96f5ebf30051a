// The engine of programs, compiled once per instruction set, by the rules of kernels.cpp.
#include "behind-inl.h"
#include "phases-inl.h"

namespace fastrnn {
namespace FASTRNN_NAMESPACE {

template <class S>
void run_program(const Run& run) {
  Team team(run.threads);
  while (!run_phases<S>(run, team)) {
  }
  while (!run_behind<S>(run, team)) {
  }
}

void run_program(const Run& run) { run.program->is_double ? run_program<double>(run) : run_program<float>(run); }

}  // namespace FASTRNN_NAMESPACE
}  // namespace fastrnn
