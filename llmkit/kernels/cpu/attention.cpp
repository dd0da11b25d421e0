// Causal attention of bf16 queries, keys and values, forward and backward, a block of queries at a time: keys
// after the block are not looked at. Scores, softmax and sums are in fp32; weights and the gradient of scores
// are rounded to bf16 for their products. Of the forward pass only the logarithms of the sums are kept.
#include <cmath>
#include <memory>

namespace {

constexpr int BLOCK = 64;    // queries
constexpr int S = 3, O = 2;  // vectors of columns in the tiles of scores and of outputs

struct Sizes {
  int64_t batch, length, heads, kv_heads, width;
  float scale;
};

// (batch, length, heads, width) bf16, the last dimension contiguous.
struct Heads {
  uint16_t* values;
  int64_t batch, row, head;
  Matrix of(int64_t b, int64_t h, int64_t from = 0) const { return {values + b * batch + h * head + from * row, row}; }
};

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
std::unique_ptr<T[], Free> buffer(int64_t count) {
  return std::unique_ptr<T[], Free>(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)));
}

constexpr int64_t padded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

int64_t panels(int64_t count, int64_t depth, int width) {
  return (padded(count, 96) / width + 1) * panel_size(int(padded(depth, 2) / 2), width);
}

AVX512 inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x);  // in this order NaN stays NaN
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.9875691500e-4f);  // Cephes' expf
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(c));
  y = _mm512_fmadd_ps(y, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(y, n);
}

AVX512 inline void round_to(uint16_t* place, __m512 value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(place), (__m256i)_mm512_cvtneps_pbh(value));
}

AVX512 inline __m512 widen(__mmask16 mask, const uint16_t* place) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, place)), 16));
}

// out (rows, columns) = left right, of packed matrices.
template <int V>
AVX512 void product(const uint16_t* left, const uint16_t* right, int depth, int rows, int columns, float* sums,
                    int64_t stride, bool add, uint16_t* rounded = nullptr, int64_t rounded_stride = 0) {
  const int pairs = (depth + 1) / 2;
  for (int j = 0; j < columns; j += 16 * V)
    for (int i = 0; i < rows; i += TALL)
      tile<V>(left + i / TALL * panel_size(pairs, TALL), right + j / (16 * V) * panel_size(pairs, 16 * V), pairs,
              sums ? sums + i * stride + j : nullptr, stride, add, rounded ? rounded + i * rounded_stride + j : nullptr,
              rounded_stride, std::min(TALL, rows - i), std::min(16 * V, columns - j));
}

// As `product`, where the right matrix was packed for more depth than is used.
template <int V>
AVX512 void partial_product(const uint16_t* left, const uint16_t* right, int depth, int64_t right_depth, int rows,
                            int columns, uint16_t* rounded, int64_t rounded_stride) {
  const int pairs = depth / 2;
  for (int j = 0; j < columns; j += 16 * V)
    for (int i = 0; i < rows; i += TALL)
      tile<V>(left + i / TALL * panel_size(pairs, TALL),
              right + j / (16 * V) * panel_size(int((right_depth + 1) / 2), 16 * V), pairs, nullptr, 0, false,
              rounded + i * rounded_stride + j, rounded_stride, std::min(TALL, rows - i), std::min(16 * V, columns - j));
}

AVX512 void forward(const Sizes& z, Heads q, Heads k, Heads v, Heads out, float* logs, int64_t index) {
  const int64_t b = index / z.heads, h = index % z.heads, kv = h / (z.heads / z.kv_heads), row_size = padded(z.length, 64);
  auto keys = buffer<uint16_t>(panels(z.length, z.width, 16 * S)), values = buffer<uint16_t>(panels(z.width, z.length, 16 * O));
  auto queries = buffer<uint16_t>(panels(BLOCK, z.width, TALL)), left = buffer<uint16_t>(panels(BLOCK, row_size, TALL));
  auto scores = buffer<float>(BLOCK * row_size);
  auto weights = buffer<uint16_t>(BLOCK * row_size);
  pack_rows<16 * S>(k.of(b, kv), int(z.width), int(z.length), keys.get());
  pack<16 * O>(v.of(b, kv), int(z.length), int(z.width), values.get());
  for (int64_t from = 0; from < z.length; from += BLOCK) {
    const int rows = int(std::min<int64_t>(BLOCK, z.length - from)), seen = int(from) + rows, even = seen + seen % 2;
    pack_rows<TALL>(q.of(b, h, from), int(z.width), rows, queries.get());
    product<S>(queries.get(), keys.get(), int(z.width), rows, seen, scores.get(), row_size, false);
    for (int i = 0; i < rows; i++) {
      float* row = scores.get() + i * row_size;
      const int count = int(from) + i + 1;
      __m512 most = _mm512_set1_ps(-INFINITY);
      for (int j = 0; j < count; j += 16) {
        const __mmask16 mask = count - j >= 16 ? 0xffff : (1u << (count - j)) - 1;
        most = _mm512_mask_max_ps(most, mask, most, _mm512_maskz_loadu_ps(mask, row + j));
      }
      const float largest = _mm512_reduce_max_ps(most) * z.scale;
      __m512 sum = _mm512_setzero_ps();
      for (int j = 0; j < count; j += 16) {
        const __mmask16 mask = count - j >= 16 ? 0xffff : (1u << (count - j)) - 1;
        const __m512 x = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(mask, row + j), _mm512_set1_ps(z.scale), _mm512_set1_ps(largest));
        const __m512 e = _mm512_maskz_mov_ps(mask, exponential(x));
        sum = _mm512_add_ps(sum, e);
        _mm512_storeu_ps(row + j, e);
      }
      const float total = _mm512_reduce_add_ps(sum);
      logs[index * z.length + from + i] = largest + std::log(total);
      const __m512 share = _mm512_set1_ps(1.0f / total);
      for (int j = 0; j < even; j += 16)
        round_to(weights.get() + i * row_size + j, j < count ? _mm512_mul_ps(_mm512_loadu_ps(row + j), share) : _mm512_setzero_ps());
    }
    pack_rows<TALL>({weights.get(), row_size}, even, rows, left.get());
    partial_product<O>(left.get(), values.get(), even, z.length, rows, int(z.width), out.values + b * out.batch + h * out.head + from * out.row, out.row);
  }
}

AVX512 void backward(const Sizes& z, Heads q, Heads k, Heads v, Heads out, Heads grad, Heads dq, Heads dk, Heads dv,
                     const float* logs, int64_t index) {
  const int64_t b = index / z.kv_heads, kv = index % z.kv_heads, group = z.heads / z.kv_heads, row_size = padded(z.length, 64);
  const int width = int(z.width), length = int(z.length);
  auto keys = buffer<uint16_t>(panels(length, width, 16 * S)), values = buffer<uint16_t>(panels(length, width, 16 * S));
  auto keys_down = buffer<uint16_t>(panels(width, length, 16 * O));
  auto queries = buffer<uint16_t>(panels(BLOCK, width, TALL));
  // queries by keys, and the other way round
  auto left = buffer<uint16_t>(std::max(panels(BLOCK, row_size, TALL), panels(row_size, BLOCK, TALL)));
  auto right = buffer<uint16_t>(panels(width, BLOCK, 16 * O));
  auto scores = buffer<float>(BLOCK * row_size), slopes = buffer<float>(BLOCK * row_size);
  auto weights = buffer<uint16_t>(BLOCK * row_size), changes = buffer<uint16_t>(BLOCK * row_size);
  auto key_sums = buffer<float>(length * width), value_sums = buffer<float>(length * width);
  std::fill_n(key_sums.get(), length * width, 0.0f);
  std::fill_n(value_sums.get(), length * width, 0.0f);
  pack_rows<16 * S>(k.of(b, kv), width, length, keys.get());
  pack_rows<16 * S>(v.of(b, kv), width, length, values.get());
  pack<16 * O>(k.of(b, kv), length, width, keys_down.get());
  for (int64_t h = kv * group; h < (kv + 1) * group; h++)
    for (int64_t from = 0; from < length; from += BLOCK) {
      const int rows = int(std::min<int64_t>(BLOCK, length - from)), seen = int(from) + rows, even = seen + seen % 2;
      const Matrix g = grad.of(b, h, from), o = out.of(b, h, from), queries_here = q.of(b, h, from);
      pack_rows<TALL>(queries_here, width, rows, queries.get());
      product<S>(queries.get(), keys.get(), width, rows, seen, scores.get(), row_size, false);
      pack_rows<TALL>(g, width, rows, queries.get());
      product<S>(queries.get(), values.get(), width, rows, seen, slopes.get(), row_size, false);
      for (int i = 0; i < rows; i++) {
        __m512 sum = _mm512_setzero_ps();
        for (int j = 0; j < width; j += 16) {
          const __mmask16 mask = width - j >= 16 ? 0xffff : (1u << (width - j)) - 1;
          sum = _mm512_fmadd_ps(widen(mask, g.values + i * g.stride + j), widen(mask, o.values + i * o.stride + j), sum);
        }
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum)), scale = _mm512_set1_ps(z.scale);
        const __m512 log = _mm512_set1_ps(logs[(b * z.heads + h) * z.length + from + i]);
        const int count = int(from) + i + 1;
        for (int j = 0; j < even; j += 16) {
          const __mmask16 mask = count - j >= 16 ? 0xffff : count > j ? (1u << (count - j)) - 1 : 0;
          const __m512 x = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(mask, scores.get() + i * row_size + j), scale, log);
          const __m512 weight = _mm512_maskz_mov_ps(mask, exponential(x));
          const __m512 slope = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, slopes.get() + i * row_size + j), mean);
          round_to(weights.get() + i * row_size + j, weight);
          round_to(changes.get() + i * row_size + j, _mm512_mul_ps(_mm512_mul_ps(weight, slope), scale));
        }
      }
      pack_rows<TALL>({changes.get(), row_size}, even, rows, left.get());
      partial_product<O>(left.get(), keys_down.get(), even, length, rows, width, dq.values + b * dq.batch + h * dq.head + from * dq.row, dq.row);
      pack<TALL>({weights.get(), row_size}, rows, seen, left.get());
      pack<16 * O>(g, rows, width, right.get());
      product<O>(left.get(), right.get(), rows, seen, width, value_sums.get(), width, true);
      pack<TALL>({changes.get(), row_size}, rows, seen, left.get());
      pack<16 * O>(queries_here, rows, width, right.get());
      product<O>(left.get(), right.get(), rows, seen, width, key_sums.get(), width, true);
    }
  for (int64_t i = 0; i < length; i++)
    for (int j = 0; j < width; j += 16) {
      const __mmask16 mask = width - j >= 16 ? 0xffff : (1u << (width - j)) - 1;
      for (auto [sums, to] : {std::pair{key_sums.get(), &dk}, std::pair{value_sums.get(), &dv}})
        _mm256_mask_storeu_epi16(to->values + b * to->batch + kv * to->head + i * to->row + j, mask,
                                 (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, sums + i * width + j)));
    }
}

}  // namespace

// sizes: batch, length, heads, kv_heads, width. heads: of each tensor the address and its strides of batch, row
// and head, in the order q, k, v, out, and in the backward pass grad, dq, dk, dv.
extern "C" void attention(const int64_t* sizes, double scale, const int64_t* heads, float* logs, int is_backward, int threads) {
  const Sizes z{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], float(scale)};
  Heads t[8] = {};
  for (int i = 0; i < (is_backward ? 8 : 4); i++)
    t[i] = {reinterpret_cast<uint16_t*>(heads[4 * i]), heads[4 * i + 1], heads[4 * i + 2], heads[4 * i + 3]};
  const int64_t tasks = z.batch * (is_backward ? z.kv_heads : z.heads);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t index = 0; index < tasks; index++)
    if (is_backward)
      backward(z, t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], logs, index);
    else
      forward(z, t[0], t[1], t[2], t[3], logs, index);
}
