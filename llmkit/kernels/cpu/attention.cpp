// Causal attention of bf16 queries, keys and values, forward and backward, a block of queries at a time: keys
// after the block are not looked at. Scores, softmax and sums are in fp32; weights and the gradient of scores
// are rounded to bf16 for their products. Of the forward pass only the logarithms of the sums are kept.
#include <cmath>

namespace {

constexpr int BLOCK = 64;            // queries
constexpr int PIECE = 192;           // keys whose scores the backward pass keeps in fp32
constexpr int S = 3, O = 2;          // vectors of columns in the tiles of scores and of outputs

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

constexpr int64_t padded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

int64_t panels(int64_t count, int64_t depth, int width) {
  return (padded(count, 96) / width + 1) * panel_size(int(padded(depth, 2) / 2), width);
}

// Where a product of a block of queries begins at query `from`: which pairs in depth a tile with first row i and
// first column j needs, as the first of them and their number. The others are of keys that come after the queries.
struct Pairs {
  int first, count;
};

// out (rows, columns) = left right, of packed matrices: in fp32 (`sums`, to which it is added if `add`), or rounded.
// left_pairs, right_pairs: of the depth for which they were packed. needed(i, j): the `Pairs` of a tile; of none
// nothing is written.
template <int V, class Needed>
AVX512 void product(const uint16_t* left, int left_pairs, const uint16_t* right, int right_pairs, int rows, int columns,
                    Needed needed, float* sums, int64_t stride, bool add, uint16_t* rounded = nullptr,
                    int64_t rounded_stride = 0) {
  for (int j = 0; j < columns; j += 16 * V)
    for (int i = 0; i < rows; i += TALL) {
      const Pairs pairs = needed(i, j);
      if (pairs.count > 0)
        tile<V>(left + i / TALL * panel_size(left_pairs, TALL) + pairs.first * 2 * TALL,
                right + j / (16 * V) * panel_size(right_pairs, 16 * V) + int64_t(pairs.first) * 32 * V, pairs.count,
                sums ? sums + i * stride + j : nullptr, stride, add, rounded ? rounded + i * rounded_stride + j : nullptr,
                rounded_stride, std::min(TALL, rows - i), std::min(16 * V, columns - j));
    }
}

AVX512 void forward(const Sizes& z, Heads q, Heads k, Heads v, Heads out, float* logs, int64_t index) {
  const int64_t b = index / z.heads, h = index % z.heads, kv = h / (z.heads / z.kv_heads), row_size = padded(z.length, 64);
  const int width = int(z.width), length = int(z.length), deep = width / 2, wide = int(padded(width, 16));
  auto keys = buffer<uint16_t>(panels(length, width, 16 * S)), values = buffer<uint16_t>(panels(width, length, 16 * O));
  auto queries = buffer<uint16_t>(panels(BLOCK, width, TALL)), left = buffer<uint16_t>(panels(BLOCK, row_size, TALL));
  auto scores = buffer<float>(BLOCK * row_size), outputs = buffer<float>(BLOCK * wide);
  auto weights = buffer<uint16_t>(BLOCK * row_size);
  float shares[BLOCK];
  pack_rows<16 * S>(k.of(b, kv), width, length, keys.get());
  pack<16 * O>(v.of(b, kv), length, width, values.get());
  for (int from = 0; from < length; from += BLOCK) {
    const int rows = std::min(BLOCK, length - from), seen = from + rows, even = seen + seen % 2;
    pack_rows<TALL>(q.of(b, h, from), width, rows, queries.get());
    product<S>(queries.get(), deep, keys.get(), deep, rows, seen,
               [=](int i, int j) { return Pairs{0, j < from + i + TALL ? deep : 0}; }, scores.get(), row_size, false);
    const __m512 scale = _mm512_set1_ps(z.scale * LOG2_E);
    for (int i = 0; i < rows; i++) {
      const float* row = scores.get() + i * row_size;
      const int count = from + i + 1;
      __m512 most = _mm512_set1_ps(-INFINITY);
      for (int j = 0; j < count; j += 16) most = _mm512_mask_max_ps(most, first(count - j), most, _mm512_loadu_ps(row + j));
      const float largest = _mm512_reduce_max_ps(most) * z.scale * LOG2_E;
      __m512 sum = _mm512_setzero_ps();
      for (int j = 0; j < even; j += 16) {
        const __mmask16 mask = first(count - j);
        const __m512 x = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(mask, row + j), scale, _mm512_set1_ps(largest));
        const __m512 e = _mm512_maskz_mov_ps(mask, power_of_two(x));
        sum = _mm512_add_ps(sum, e);
        round_to(weights.get() + i * row_size + j, e);
      }
      const float total = _mm512_reduce_add_ps(sum);
      logs[index * length + from + i] = largest / LOG2_E + std::log(total);
      shares[i] = 1.0f / total;
    }
    pack_rows<TALL>({weights.get(), row_size}, even, rows, left.get());
    product<O>(left.get(), even / 2, values.get(), (length + 1) / 2, rows, width,
               [=](int i, int) { return Pairs{0, std::min(even, from + i + TALL) / 2}; }, outputs.get(), wide,
               false);
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < width; j += 16) {
        const __m512 o = _mm512_mul_ps(_mm512_loadu_ps(outputs.get() + i * wide + j), _mm512_set1_ps(shares[i]));
        _mm256_mask_storeu_epi16(out.values + b * out.batch + h * out.head + (from + i) * out.row + j, first(width - j),
                                 (__m256i)_mm512_cvtneps_pbh(o));
      }
  }
}

// The weights of a block of queries and the gradients of its scores, in bf16, of `count` keys from `at` on.
// means: of each query's gradient times its output, summed.
AVX512 void differentiate(const float* scores, const float* slopes, float scale, const float* logs, const float* means,
                          int from, int rows, int at, int count, uint16_t* weights, uint16_t* changes, int64_t row_size) {
  for (int i = 0; i < rows; i++) {
    const __m512 log = _mm512_set1_ps(logs[from + i] * LOG2_E), mean = _mm512_set1_ps(means[i]);
    for (int j = 0; j < count; j += 16) {
      const __mmask16 mask = first(from + i + 1 - at - j);
      const __m512 score = _mm512_maskz_loadu_ps(mask, scores + i * PIECE + j);
      const __m512 weight = power_of_two(_mm512_fmsub_ps(score, _mm512_set1_ps(scale * LOG2_E), log));
      const __m512 slope = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, slopes + i * PIECE + j), mean);
      round_to(weights + i * row_size + at + j, _mm512_maskz_mov_ps(mask, weight));
      round_to(changes + i * row_size + at + j, _mm512_maskz_mul_ps(mask, _mm512_mul_ps(weight, slope), _mm512_set1_ps(scale)));
    }
  }
}

AVX512 float dot(const Matrix& one, const Matrix& other, int row, int width) {
  const uint16_t *a = one.values + row * one.stride, *b = other.values + row * other.stride;
  __m512 sum = _mm512_setzero_ps();
  for (int j = 0; j < width; j += 16) {
    _mm_prefetch(a + AHEAD * one.stride + j, _MM_HINT_T0);
    _mm_prefetch(b + AHEAD * other.stride + j, _MM_HINT_T0);
    sum = _mm512_fmadd_ps(widen(first(width - j), a + j), widen(first(width - j), b + j), sum);
  }
  return _mm512_reduce_add_ps(sum);
}

AVX512 void backward(const Sizes& z, Heads q, Heads k, Heads v, Heads out, Heads grad, Heads dq, Heads dk, Heads dv,
                     const float* logs, int64_t index) {
  const int64_t b = index / z.kv_heads, kv = index % z.kv_heads, group = z.heads / z.kv_heads, row_size = padded(z.length, 64);
  const int width = int(z.width), length = int(z.length), deep = width / 2;
  auto keys = buffer<uint16_t>(panels(length, width, 16 * S)), values = buffer<uint16_t>(panels(length, width, 16 * S));
  auto keys_down = buffer<uint16_t>(panels(width, length, 16 * O));
  auto queries = buffer<uint16_t>(panels(BLOCK, width, TALL)), gradients = buffer<uint16_t>(panels(BLOCK, width, TALL));
  // queries by keys, and the other way round
  auto left = buffer<uint16_t>(std::max(panels(BLOCK, row_size, TALL), panels(row_size, BLOCK, TALL)));
  auto right = buffer<uint16_t>(panels(width, BLOCK, 16 * O));
  auto scores = buffer<float>(BLOCK * PIECE), slopes = buffer<float>(BLOCK * PIECE);
  auto weights = buffer<uint16_t>(BLOCK * row_size), changes = buffer<uint16_t>(BLOCK * row_size);
  auto key_sums = buffer<float>(length * width), value_sums = buffer<float>(length * width);
  float means[BLOCK];
  std::fill_n(key_sums.get(), length * width, 0.0f);
  std::fill_n(value_sums.get(), length * width, 0.0f);
  pack_rows<16 * S>(k.of(b, kv), width, length, keys.get());
  pack_rows<16 * S>(v.of(b, kv), width, length, values.get());
  pack<16 * O>(k.of(b, kv), length, width, keys_down.get());
  for (int64_t h = kv * group; h < (kv + 1) * group; h++)
    for (int from = 0; from < length; from += BLOCK) {
      const int rows = std::min(BLOCK, length - from), seen = from + rows, even = seen + seen % 2;
      const Matrix g = grad.of(b, h, from), o = out.of(b, h, from), queries_here = q.of(b, h, from);
      for (int i = 0; i < rows; i++) means[i] = dot(g, o, i, width);
      pack_rows<TALL>(queries_here, width, rows, queries.get());
      pack_rows<TALL>(g, width, rows, gradients.get());
      for (int at = 0; at < seen; at += PIECE) {
        const auto visible = [=](int i, int j) { return Pairs{0, at + j < from + i + TALL ? deep : 0}; };
        const int64_t panel = at / (16 * S) * panel_size(deep, 16 * S);
        const int count = std::min(PIECE, seen - at);
        product<S>(queries.get(), deep, keys.get() + panel, deep, rows, count, visible, scores.get(), PIECE, false);
        product<S>(gradients.get(), deep, values.get() + panel, deep, rows, count, visible, slopes.get(), PIECE, false);
        differentiate(scores.get(), slopes.get(), z.scale, logs + (b * z.heads + h) * length, means, from, rows, at,
                      std::min(PIECE, even - at), weights.get(), changes.get(), row_size);
      }
      pack_rows<TALL>({changes.get(), row_size}, even, rows, left.get());
      product<O>(left.get(), even / 2, keys_down.get(), (length + 1) / 2, rows, width,
                 [=](int i, int) { return Pairs{0, std::min(even, from + i + TALL) / 2}; }, nullptr, 0, false,
                 dq.values + b * dq.batch + h * dq.head + from * dq.row, dq.row);
      const int pairs = (rows + 1) / 2;
      const auto after = [=](int i, int) { return Pairs{std::max(0, i - from) / 2, pairs - std::max(0, i - from) / 2}; };
      pack<TALL>({weights.get(), row_size}, rows, seen, left.get());
      pack<16 * O>(g, rows, width, right.get());
      product<O>(left.get(), pairs, right.get(), pairs, seen, width, after, value_sums.get(), width, true);
      pack<TALL>({changes.get(), row_size}, rows, seen, left.get());
      pack<16 * O>(queries_here, rows, width, right.get());
      product<O>(left.get(), pairs, right.get(), pairs, seen, width, after, key_sums.get(), width, true);
    }
  for (int64_t i = 0; i < length; i++)
    for (int j = 0; j < width; j += 16)
      for (auto [sums, to] : {std::pair{key_sums.get(), &dk}, std::pair{value_sums.get(), &dv}})
        _mm256_mask_storeu_epi16(to->values + b * to->batch + kv * to->head + i * to->row + j, first(width - j),
                                 (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(first(width - j), sums + i * width + j)));
}

}  // namespace

// sizes: batch, length, heads, kv_heads, width. heads: of each tensor the address and its strides of batch, row
// and head, in the order q, k, v, out, and in the backward pass grad, dq, dk, dv. Returns whether memory was missing.
extern "C" int attention(const int64_t* sizes, double scale, const int64_t* heads, float* logs, int is_backward, int threads) {
  const Sizes z{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], float(scale)};
  Heads t[8] = {};
  for (int i = 0; i < (is_backward ? 8 : 4); i++)
    t[i] = {reinterpret_cast<uint16_t*>(heads[4 * i]), heads[4 * i + 1], heads[4 * i + 2], heads[4 * i + 3]};
  const int64_t tasks = z.batch * (is_backward ? z.kv_heads : z.heads);
  return in_parallel(tasks, threads, [&](int64_t index) {
    if (is_backward)
      backward(z, t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], logs, index);
    else
      forward(z, t[0], t[1], t[2], t[3], logs, index);
  });
}
