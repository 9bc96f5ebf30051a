# Fails where an object file defines a symbol that the linker may merge with another file's of the same name, outside the
# namespace of its instruction set: the program could then run, say, AVX-512 code from a template of the standard library
# on a machine that lacks it.  NM, OBJECT, ISA: the tool, the file, the namespace.
execute_process(COMMAND ${NM} --demangle --defined-only ${OBJECT} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]* [TWVu] [^\n]*" symbols "${symbols}")
string(LENGTH ${ISA} length)  # in names that the tool is too old to read
list(FILTER symbols EXCLUDE REGEX "fastrnn::${ISA}::|_ZN7fastrnn${length}${ISA}|DW\\.ref\\.__gxx_personality_v0")
if(symbols)
  string(REPLACE ";" "\n" symbols "${symbols}")
  message(FATAL_ERROR "${OBJECT} defines outside fastrnn::${ISA}:\n${symbols}")
endif()
