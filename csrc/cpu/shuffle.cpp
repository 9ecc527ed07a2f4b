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

struct Wide {
  uint64_t parts[2];
};

Tensor shuffle(const Tensor& indices, int64_t seed, int64_t epoch, const std::optional<Tensor>& buffer) {
  check_vector(indices, "shuffle", "indices");
  STD_TORCH_CHECK(indices.numel() <= LONGEST, "shuffle: indices must have at most 2^40 elements");
  Output out(buffer, indices, indices.scalar_type(), "shuffle", "out");
  const int64_t n = indices.numel();
  void* to = out.take<void>({n});
  const auto run = [&]<typename Element>(Element) {
    shuffle_kernel(static_cast<const Element*>(indices.const_data_ptr()), n, seed, epoch, static_cast<Element*>(to));
  };
  switch (n == 0 ? 0 : indices.element_size()) {
    case 0:
      break;
    case 1:
      run(uint8_t{});
      break;
    case 2:
      run(uint16_t{});
      break;
    case 4:
      run(uint32_t{});
      break;
    case 8:
      run(uint64_t{});
      break;
    case 16:
      run(Wide{});
      break;
    default:
      STD_TORCH_CHECK(false, "shuffle: unsupported dtype");
  }
  return out.result();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stprune, CPU, m) {
  m.impl("permute", TORCH_BOX(&permute));
  m.impl("shuffle", TORCH_BOX(&shuffle));
}

}  // namespace stprune
