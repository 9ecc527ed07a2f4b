// shuffle: a counter-based random order of the given elements. permute: a stretch of that order, with nothing stored.
#include "cpu/chunks.h"
#include "cpu/permute.h"

namespace stprune {
namespace {

constexpr int64_t LONGEST = int64_t{1} << 40;

// Calls body(first, count, images) for consecutive stretches of perm(start) .. perm(start + count - 1), in parallel.
template <typename Body>
void for_images(int64_t n, int64_t start, int64_t count, int64_t seed, int64_t epoch, int64_t stream,
                const Body& body) {
  const PhiloxKey key = philox_key(seed);
  if (n < PERMUTATION_SMALL) {
    int64_t images[PERMUTATION_SMALL];
    permute_small(n, key, static_cast<uint32_t>(epoch), static_cast<uint32_t>(stream), 0, images);
    body(0, count, images + start);
    return;
  }
  const Permutation p = make_permutation(n, key, static_cast<uint32_t>(epoch), static_cast<uint32_t>(stream), 0);
  for_chunks(num_chunks(count), [&](int64_t chunk) {
    int64_t images[PERMUTE_BLOCK];
    const int64_t end = chunk * CHUNK + chunk_size(count, chunk);
    for (int64_t first = chunk * CHUNK; first < end; first += PERMUTE_BLOCK) {
      const int64_t size = std::min(PERMUTE_BLOCK, end - first);
      kernels().permute(&p, start + first, size, images);
      body(first, size, images);
    }
  });
}

void permute(Tensor out, int64_t n, int64_t start, int64_t seed, int64_t epoch, int64_t stream) {
  check_vector(out, "permute", "out");
  check_dtype(out, ScalarType::Long, "permute", "out");
  const int64_t count = out.numel();
  STD_TORCH_CHECK(n <= LONGEST && start >= 0 && start + count <= n, "permute: the stretch must lie in [0, ", n, "]");
  if (count == 0) return;
  int64_t* to = out.mutable_data_ptr<int64_t>();
  for_images(n, start, count, seed, epoch, stream, [to](int64_t first, int64_t size, const int64_t* images) {
    std::copy(images, images + size, to + first);
  });
}

template <typename Element>
void shuffle_kernel(const Element* from /* [n] */, int64_t n, int64_t seed, int64_t epoch, Element* to /* [n] */) {
  for_images(n, 0, n, seed, epoch, STREAM_SHUFFLE, [from, to](int64_t first, int64_t size, const int64_t* images) {
    for (int64_t i = 0; i < size; ++i) to[first + i] = from[images[i]];
  });
}

template <typename Element>
void shuffle_elements(const Tensor& indices, int64_t seed, int64_t epoch, Tensor& out) {
  shuffle_kernel(static_cast<const Element*>(indices.data_ptr()), indices.numel(), seed, epoch,
                 static_cast<Element*>(out.data_ptr()));
}

struct Wide {
  uint64_t parts[2];
};

void shuffle_into(Tensor out, const Tensor& indices, int64_t seed, int64_t epoch) {
  check_vector(indices, "shuffle", "indices");
  check_vector(out, "shuffle", "out");
  check_dtype(out, indices.scalar_type(), "shuffle", "out");
  STD_TORCH_CHECK(indices.numel() <= LONGEST, "shuffle: indices must have at most 2^40 elements");
  STD_TORCH_CHECK(out.numel() == indices.numel(), "shuffle: out must have ", indices.numel(), " elements");
  if (indices.numel() == 0) return;
  switch (indices.element_size()) {
    case 1:
      return shuffle_elements<uint8_t>(indices, seed, epoch, out);
    case 2:
      return shuffle_elements<uint16_t>(indices, seed, epoch, out);
    case 4:
      return shuffle_elements<uint32_t>(indices, seed, epoch, out);
    case 8:
      return shuffle_elements<uint64_t>(indices, seed, epoch, out);
    case 16:
      return shuffle_elements<Wide>(indices, seed, epoch, out);
    default:
      STD_TORCH_CHECK(false, "shuffle: unsupported dtype");
  }
}

Tensor shuffle(const Tensor& indices, int64_t seed, int64_t epoch) {
  Tensor out = new_output(indices, indices.numel(), indices.scalar_type());
  shuffle_into(out, indices, seed, epoch);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) {
  m.impl("permute", TORCH_BOX(&permute));
  m.impl("shuffle", TORCH_BOX(&shuffle));
  m.impl("shuffle_into", TORCH_BOX(&shuffle_into));
}

}  // namespace stprune
