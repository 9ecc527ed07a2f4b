# The CUDA library _C_cuda: option STPRUNE_CUDA=AUTO|ON|OFF. Its sources are csrc/cuda/<op>.cu (kernels and launchers on raw
# pointers, compiled by nvcc, without torch's headers, which would triple their compile time) and csrc/cuda/<op>.cpp
# (registrations, compiled by the host compiler against the stable ABI).
#
# AUTO builds it where it can be used: nvcc is found, and the torch of the environment is a CUDA build, which its
# libtorch_cuda.so tells. Compiling for three architectures takes minutes, and under a CPU build of torch the library could
# not even be loaded. ON builds it whatever torch is there (only torch's headers are needed), and fails without nvcc.
# CMAKE_CUDA_ARCHITECTURES narrows or widens the list of architectures.
set(STPRUNE_WITH_CUDA OFF)
get_filename_component(STPRUNE_TORCH_DIR "${TORCH_INCLUDE_DIR}" DIRECTORY)
if(STPRUNE_CUDA STREQUAL "OFF")
  message(STATUS "stprune: CUDA library off (STPRUNE_CUDA=OFF)")
elseif(STPRUNE_CUDA STREQUAL "AUTO" AND NOT EXISTS "${STPRUNE_TORCH_DIR}/lib/libtorch_cuda.so")
  message(STATUS "stprune: CUDA library off (the torch in ${STPRUNE_TORCH_DIR} has no CUDA; STPRUNE_CUDA=ON builds it all the same)")
else()
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    # Machine code for A100, H100/H200 and B100/B200, and PTX from which drivers make that of later ones.
    set(CMAKE_CUDA_ARCHITECTURES "80-real;90-real;100")
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(STPRUNE_WITH_CUDA ON)
  elseif(STPRUNE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "STPRUNE_CUDA=ON, but no CUDA compiler was found: put nvcc on PATH or set CUDACXX")
  else()
    message(STATUS "stprune: CUDA library off (no nvcc found)")
  endif()
endif()

if(STPRUNE_WITH_CUDA)
  enable_language(CUDA)
  # Linked in statically: a shared runtime would tie the library to one CUDA version of torch.
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  stprune_stub(torch_cuda)
  file(GLOB STPRUNE_CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*.cu csrc/cuda/*.cpp)
  # csrc/library.cpp holds the contract that the loader looks for.
  add_library(_C_cuda MODULE csrc/library.cpp ${STPRUNE_CUDA_SOURCES})
  target_compile_definitions(_C_cuda PRIVATE USE_CUDA)
  # C++17, because CMake 3.25 does not know how to ask nvcc 13 for C++20.
  set_target_properties(_C_cuda PROPERTIES CUDA_STANDARD 17 CUDA_VISIBILITY_PRESET hidden)
  # The same bits as on the CPU: no contraction into FMA; division and square root are IEEE's by default.
  target_compile_options(_C_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--threads=2 --fmad=false>)
  target_link_libraries(_C_cuda PRIVATE torch_stable stub_torch_cpu stub_torch_cuda)
  stprune_library(_C_cuda)
  message(STATUS "stprune: CUDA library on for ${CMAKE_CUDA_ARCHITECTURES}")
endif()
