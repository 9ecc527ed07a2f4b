# What Python and the library must agree on, as a number that csrc/library.cpp puts into the library (stprune/_contract.py).
file(GLOB STPRUNE_CONTRACT_SOURCES CONFIGURE_DEPENDS stprune/ops/*.py stprune/reference/*.py)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
  ${STPRUNE_CONTRACT_SOURCES} stprune/_contract.py cmake/contract.py)
execute_process(
  COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/cmake/contract.py"
  OUTPUT_VARIABLE STPRUNE_CONTRACT
  OUTPUT_STRIP_TRAILING_WHITESPACE
  COMMAND_ERROR_IS_FATAL ANY)
set_source_files_properties(csrc/library.cpp PROPERTIES COMPILE_DEFINITIONS "STPRUNE_CONTRACT=\"${STPRUNE_CONTRACT}\"")
