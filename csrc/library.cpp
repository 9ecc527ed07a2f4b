// Loading this library registers every CPU kernel of stprune with torch's dispatcher; each op registers itself in its
// own file with STABLE_TORCH_LIBRARY_IMPL. Schemas, fake kernels and autograd live in Python (stprune/ops).

// Raised whenever the schema of an op changes. stprune/_load.py looks for this mark in the file and does not load a
// library of another version, whose kernels would be called with arguments they do not know.
extern "C" __attribute__((visibility("default"), used)) const char stprune_abi[] = "stprune-abi:4;";
