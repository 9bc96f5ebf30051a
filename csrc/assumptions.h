// What tests take for granted in the place of what is measured.
#pragma once

namespace fastrnn {

// Other rates than those measured, as of Machine; zeros for these again.
void assume_rates(double start, double meeting, double multiply_adds, double read);
// At one meeting of so many half of a team leaves; 0 for those that were late.
void assume_late(int every);
// To one round of so many a thread comes so late that others have begun its share; 0 for none.
void assume_absent(int every);
// Whether each array that a call works in is memory of its own, behind which an allocator can look.
void assume_apart(bool apart);

}  // namespace fastrnn
