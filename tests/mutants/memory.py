"""Faults in the C++ core beside the kernels of floats: weights of 8 bits, threads, what is kept, what is checked."""

from mutants import Fault

FAULTS = [
    Fault(
        "int8-rows-past-the-end",
        "the last rows of a matrix are multiplied where they lie, though a vector reads past its end",
        "csrc/int8-inl.h",
        "const bool inside = (row + L - 1) * depth + whole_vectors(depth) <= rows * depth;",
        "const bool inside = (row + L - 1) * depth + (PLANTED ? depth : whole_vectors(depth)) <= rows * depth;",
        "test_guarded_memory.py",
    ),
    Fault(
        "int8-chunk-end",
        "the last, shorter chunk of inputs is multiplied as if it were whole",
        "csrc/int8-inl.h",
        "multiply_inputs(s, smaller(s + chunk, z.steps), own, x);",
        "multiply_inputs(s, PLANTED ? s + chunk : smaller(s + chunk, z.steps), own, x);",
        "test_kernel_edges.py -k 8_bits",
    ),
    Fault(
        "int8-zeros",
        "a row of zeros is divided by its scale of zero",
        "csrc/int8-inl.h",
        "if (!finite || scale < 1.17549435e-38f) return",
        "if (!finite || (scale < 1.17549435e-38f && !PLANTED)) return",
        "test_quantized.py -k zeros test_quantized_quick.py",
    ),
    Fault(
        "int8-behind-a-row",
        "a row of activations is followed by what was there, not by zeros",
        "csrc/int8-inl.h",
        "  clear(to, whole_vectors(count));\n",
        "  if (!PLANTED) clear(to, whole_vectors(count));\n",
        "test_quantized.py test_kernel_edges.py",
    ),
]
