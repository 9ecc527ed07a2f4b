// Loading this library registers every kernel of stprune with torch's dispatcher; each op registers itself in its own
// file with STABLE_TORCH_LIBRARY_IMPL. Schemas, fake kernels and autograd live in Python (stprune/ops).

// The op schemas and constants that this library was built for, as a number that cmake/contract.py makes of them.
// stprune/_load.py looks for it in the file and does not load a library with another one, whose kernels would be called
// with arguments they do not know.
extern "C" __attribute__((visibility("default"), used)) const char stprune_contract[] =
    "stprune-contract:" STPRUNE_CONTRACT ";";
