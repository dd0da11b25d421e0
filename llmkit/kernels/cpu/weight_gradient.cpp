// out (+)= left' right of bf16 matrices with sums in fp32: the gradient of a linear layer's weight.
//
// left: (depth, rows), right: (depth, columns), out: (rows, columns), in fp32 or bf16. oneDNN transposes the left
// matrix for such a product. The instruction that multiplies bf16, vdpbf16ps, takes neighbours in depth as
// pairs, so here two rows of a matrix are interleaved instead, which costs a fraction of that.
//
// Blocks as in Goto and van de Geijn (2008): packed pieces of both matrices stay in the L2 cache, the panel of
// `right` that is in use in L1, a tile of TALL x WIDE sums in registers. The order of the sums depends on the
// sizes alone, not on the number of threads.
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>

namespace {

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512bf16")))

constexpr int TALL = 8, VECTORS = 3, WIDE = 16 * VECTORS;  // 24 of 32 registers hold sums
constexpr int DEPTH = 256;                                 // a panel of `right` takes 24 KiB
constexpr int ROWS = 384, COLUMNS = 768;                   // packed pieces take 192 and 384 KiB
constexpr int WAITING = 1 << 20;                           // fp32 sums that wait to be complete before they are rounded
constexpr int AHEAD = 16;                                  // rows that packing fetches in advance
constexpr int PADDING = 32;  // between panels, which would else lie a power of two apart and share cache sets

constexpr int64_t panel_size(int pairs, int width) { return int64_t(pairs) * 2 * width + PADDING; }

struct Matrix {
  const uint16_t* values;
  int64_t stride;
};

struct Output {
  void* values;
  int64_t stride;
  bool bf16;
};

// Rows [0, depth) and columns [0, count) as panels of `WIDTH` columns: [panel][pair of rows][column][2], with
// zeros in the place of what is not there.
template <int WIDTH>
AVX512 void pack(Matrix from, int depth, int count, uint16_t* to) {
  alignas(64) uint16_t order[2][32];
  for (int i = 0; i < 32; i++) {
    order[0][i] = i / 2 + i % 2 * 32;
    order[1][i] = order[0][i] + 16;
  }
  const __m512i low = _mm512_load_si512(order[0]), high = _mm512_load_si512(order[1]);
  const int pairs = (depth + 1) / 2;
  for (int pair = 0; pair < pairs; pair++) {
    const uint16_t* row = from.values + 2 * pair * from.stride;
    const bool second = 2 * pair + 1 < depth;
    for (int column = 0; column < count; column += 32) {
      _mm_prefetch(row + AHEAD * from.stride + column, _MM_HINT_T0);
      _mm_prefetch(row + (AHEAD + 1) * from.stride + column, _MM_HINT_T0);
      const int left = count - column;
      const __mmask32 mask = left >= 32 ? ~0u : (1u << left) - 1;
      const __m512i a = _mm512_maskz_loadu_epi16(mask, row + column);
      const __m512i b = _mm512_maskz_loadu_epi16(second ? mask : 0, row + from.stride + column);
      const __m512i both[2] = {_mm512_permutex2var_epi16(a, low, b), _mm512_permutex2var_epi16(a, high, b)};
      auto place = [&](int i) {
        return to + (column + i) / WIDTH * panel_size(pairs, WIDTH) + 2 * (pair * WIDTH + (column + i) % WIDTH);
      };
#pragma GCC unroll 2
      for (int i = 0; i < 2; i++) {
        if constexpr (WIDTH % 16 == 0) {
          _mm512_store_si512(place(16 * i), both[i]);
        } else {
          _mm256_store_si256(reinterpret_cast<__m256i*>(place(16 * i)), _mm512_castsi512_si256(both[i]));
          _mm256_store_si256(reinterpret_cast<__m256i*>(place(16 * i + 8)), _mm512_extracti64x4_epi64(both[i], 1));
        }
      }
    }
  }
}

// One tile: sums of `pairs` products, added to `sums` if `add`, then stored there or, rounded, in `rounded`.
AVX512 void tile(const uint16_t* left, const uint16_t* right, int pairs, float* sums, int64_t stride, bool add,
                 uint16_t* rounded, int64_t rounded_stride, int rows, int columns) {
  __m512 total[TALL][VECTORS];
#pragma GCC unroll 8
  for (int i = 0; i < TALL; i++)
#pragma GCC unroll 3
    for (int j = 0; j < VECTORS; j++) total[i][j] = _mm512_setzero_ps();
  for (int i = 0; add && i < rows; i++)
    for (int j = 0; j < VECTORS; j++) _mm_prefetch(sums + i * stride + 16 * j, _MM_HINT_T0);
  for (int pair = 0; pair < pairs; pair++, left += 2 * TALL, right += 2 * WIDE) {
    __m512bh b[VECTORS];
#pragma GCC unroll 3
    for (int j = 0; j < VECTORS; j++) b[j] = (__m512bh)_mm512_load_si512(right + 32 * j);
#pragma GCC unroll 8
    for (int i = 0; i < TALL; i++) {
      const __m512bh a = (__m512bh)_mm512_set1_epi32(*reinterpret_cast<const int*>(left + 2 * i));
#pragma GCC unroll 3
      for (int j = 0; j < VECTORS; j++) total[i][j] = _mm512_dpbf16_ps(total[i][j], a, b[j]);
    }
  }
  __mmask16 mask[VECTORS];  // of the columns that are there
#pragma GCC unroll 3
  for (int j = 0; j < VECTORS; j++) mask[j] = (1u << std::clamp(columns - 16 * j, 0, 16)) - 1;
#pragma GCC unroll 8
  for (int i = 0; i < TALL; i++) {
    if (i >= rows) continue;
    float* row = sums + i * stride;
    if (add)
#pragma GCC unroll 3
      for (int j = 0; j < VECTORS; j++)
        total[i][j] = _mm512_add_ps(total[i][j], _mm512_maskz_loadu_ps(mask[j], row + 16 * j));
    if (rounded)
#pragma GCC unroll 3
      for (int j = 0; j < VECTORS; j++) {
        const __m512i half = _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(total[i][j]));
        _mm512_mask_storeu_epi16(rounded + i * rounded_stride + 16 * j, mask[j], half);
      }
    else
#pragma GCC unroll 3
      for (int j = 0; j < VECTORS; j++) _mm512_mask_storeu_ps(row + 16 * j, mask[j], total[i][j]);
  }
}

// The product for one thread.
AVX512 void multiply(Matrix left, Matrix right, Output out, int64_t depth, int64_t rows, int64_t columns, bool add) {
  if (rows <= 0 || columns <= 0) return;
  const int64_t left_panels = (ROWS + 32) / TALL, right_panels = (COLUMNS + 32) / WIDE + 1;
  const int64_t sizes[] = {2 * left_panels * panel_size(DEPTH / 2, TALL), 2 * right_panels * panel_size(DEPTH / 2, WIDE),
                           out.bf16 ? 4 * int64_t(WAITING) : 0};
  auto* memory = static_cast<char*>(std::aligned_alloc(64, (sizes[0] + sizes[1] + sizes[2] + 63) / 64 * 64));
  auto* packed_left = reinterpret_cast<uint16_t*>(memory);
  auto* packed_right = reinterpret_cast<uint16_t*>(memory + sizes[0]);
  auto* waiting = reinterpret_cast<float*>(memory + sizes[0] + sizes[1]);
  for (int64_t column = 0; column < columns; column += COLUMNS) {
    const int wide = std::min<int64_t>(COLUMNS, columns - column);
    const int64_t height = out.bf16 ? WAITING / wide / ROWS * ROWS : rows;
    for (int64_t band = 0; band < rows; band += height) {
      const int64_t band_end = std::min(rows, band + height);
      for (int64_t begin = 0; begin < depth; begin += DEPTH) {
        const int deep = std::min<int64_t>(DEPTH, depth - begin), pairs = (deep + 1) / 2;
        const bool last = begin + deep == depth;
        pack<WIDE>({right.values + begin * right.stride + column, right.stride}, deep, wide, packed_right);
        for (int64_t row = band; row < band_end; row += ROWS) {
          const int tall = std::min<int64_t>(ROWS, band_end - row);
          pack<TALL>({left.values + begin * left.stride + row, left.stride}, deep, tall, packed_left);
          for (int j = 0; j < wide; j += WIDE)
            for (int i = 0; i < tall; i += TALL) {
              const int64_t at = (row + i) * out.stride + column + j;
              float* sums = out.bf16 ? waiting + (row - band + i) * wide + j : static_cast<float*>(out.values) + at;
              tile(packed_left + i / TALL * panel_size(pairs, TALL), packed_right + j / WIDE * panel_size(pairs, WIDE),
                   pairs, sums, out.bf16 ? wide : out.stride, add || begin > 0,
                   out.bf16 && last ? static_cast<uint16_t*>(out.values) + at : nullptr, out.stride,
                   std::min(TALL, tall - i), std::min(WIDE, wide - j));
            }
        }
      }
    }
  }
  std::free(memory);
}

}  // namespace

// add: to what is in `out`, which then must be fp32. Each thread computes a rectangle of `out`.
extern "C" void weight_gradient(const uint16_t* left, int64_t left_stride, const uint16_t* right, int64_t right_stride,
                                void* out, int64_t out_stride, int64_t depth, int64_t rows, int64_t columns, int bf16,
                                int add, int threads) {
  int across = 1;  // rectangles side by side: those whose sides are shortest pack least
  for (int i = 1; i <= threads; i++)
    if (threads % i == 0 && rows * i / threads + columns / i < rows * across / threads + columns / across) across = i;
  const int down = threads / across;
  const int64_t tall = ((rows + down - 1) / down + 31) / 32 * 32, wide = ((columns + across - 1) / across + 31) / 32 * 32;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int index = 0; index < threads; index++) {
    const int64_t row = index % down * tall, column = index / down * wide;
    auto* place = static_cast<char*>(out) + (row * out_stride + column) * (bf16 ? 2 : 4);
    multiply({left + row, left_stride}, {right + column, right_stride}, {place, out_stride, bf16 != 0}, depth,
             std::min(tall, rows - row), std::min(wide, columns - column), add != 0);
  }
}
