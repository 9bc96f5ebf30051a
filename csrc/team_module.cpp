#include "team_module.h"

#include "assumptions.h"
#include "barrier.h"
#include "machine.h"
#include "team_plan.h"
#include "threads.h"

namespace fastrnn {
namespace {

namespace py = pybind11;
using namespace pybind11::literals;

TeamWork work_of(const py::dict& from) {
  TeamWork work{};
  work.recurrent = from["recurrent"].cast<double>(), work.ahead = from["ahead"].cast<double>();
  work.weight_bytes = from["weight_bytes"].cast<double>();
  work.steps = from["steps"].cast<int64_t>(), work.rows = from["rows"].cast<int64_t>();
  work.batch = from["batch"].cast<int64_t>(), work.least_rows = from["least_rows"].cast<int64_t>();
  work.panels = from["panels"].cast<int64_t>(), work.directions = from["directions"].cast<int>();
  work.meet_by_units = from["meet_by_units"].cast<bool>();
  if (work.steps < 1 || work.panels < 1 || work.directions < 1)
    throw py::value_error("work: expected at least one step, one panel and one direction");
  return work;
}

Machine machine_of(const py::dict& from) {
  const auto number = [&](const char* name) { return from[name].cast<double>(); };
  return {number("start"),
          number("meeting"),
          number("multiply_adds"),
          number("read"),
          number("cache"),
          from["threads"].cast<int>(),
          from["threads_in_company"].cast<int>(),
          number("slice")};
}

py::dict machine_as_dict(int threads) {
  const Machine m = this_machine(threads);
  return py::dict("start"_a = m.start, "meeting"_a = m.meeting, "multiply_adds"_a = m.multiply_adds, "read"_a = m.read,
                  "cache"_a = m.cache, "threads"_a = m.threads, "threads_in_company"_a = m.threads_in_company,
                  "slice"_a = m.slice);
}

}  // namespace

void add_teams(py::module_& m) {
  m.def("thread_source", &thread_source);
  m.def("usable_cpus", &usable_cpus);
  m.def("cpus_of_quota", &cpus_of_quota, "text"_a);
  m.def("this_machine", &machine_as_dict, "threads"_a);
  m.def(
      "plan_team",
      [](const py::dict& work, const py::dict& machine) {
        const TeamPlan plan = plan_team(work_of(work), machine_of(machine));
        return py::make_tuple(plan.threads, plan.side_by_side, plan.groups);
      },
      "work"_a, "machine"_a);
  m.def(
      "predicted_time",
      [](const py::dict& work, const py::dict& machine, int threads, bool side_by_side, int groups) {
        if (threads < 1 || groups < 1 || threads % groups)
          throw py::value_error("groups: expected as many threads in each");
        return predicted_time(work_of(work), machine_of(machine), {threads, side_by_side, groups});
      },
      "work"_a, "machine"_a, "threads"_a, "side_by_side"_a, "groups"_a);
  m.def(
      "plan_wavefront",
      [](const py::dict& work, const py::dict& machine, int layers, int64_t piece) {
        if (piece < 1) throw py::value_error("piece: expected at least one row");
        return plan_wavefront(work_of(work), machine_of(machine), layers, piece);
      },
      "work"_a, "machine"_a, "layers"_a, "piece"_a);
  m.def(
      "predicted_wavefront",
      [](const py::dict& work, const py::dict& machine, int height, int64_t piece) {
        if (height < 1 || piece < 1) throw py::value_error("height, piece: expected at least one");
        return predicted_wavefront(work_of(work), machine_of(machine), height, piece);
      },
      "work"_a, "machine"_a, "height"_a, "piece"_a);
  m.def("assume_rates", &assume_rates, "start"_a, "meeting"_a, "multiply_adds"_a, "read"_a);
  m.def("assume_late", &assume_late, "every"_a);
  m.def("assume_absent", &assume_absent, "every"_a);
  m.def("assume_apart", &assume_apart, "apart"_a);
  m.def("most_in_company", &most_in_company);
  m.def("note_company", &note_company, "late"_a, "threads"_a);
  m.def("forget_company", &forget_company);
}

}  // namespace fastrnn
