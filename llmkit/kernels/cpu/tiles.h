// What the kernels of this folder share: products of bf16 matrices with sums in fp32, tile by tile; exponentials.
//
// vdpbf16ps, the instruction that multiplies bf16, takes neighbours in depth as pairs. Packed matrices are panels
// in which two neighbours are interleaved (Goto and van de Geijn 2008): a panel of the right matrix is used from
// the L1 cache, a tile of sums stays in registers.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace {

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512bf16")))

constexpr int TALL = 8;  // rows of a tile; with 3 vectors of columns, 24 of 32 registers hold sums
constexpr int AHEAD = 16;                                  // rows that packing fetches in advance
constexpr int PADDING = 32;  // between panels, which would else lie a power of two apart and share cache sets

constexpr int64_t panel_size(int pairs, int width) { return int64_t(pairs) * 2 * width + PADDING; }

struct Free {
  void operator()(void* p) const { std::free(p); }
};
// Memory for `count` values, of which none is set. Throws std::bad_alloc.
template <class T>
std::unique_ptr<T[], Free> buffer(int64_t count) {
  void* memory = std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
  if (!memory) throw std::bad_alloc();
  return std::unique_ptr<T[], Free>(static_cast<T*>(memory));
}

// Calls work(0), ..., work(count - 1), each on a thread that is free. Returns 0, or 1 where one of them got no memory:
// an exception that left a parallel region would end the process.
template <class Work>
int in_parallel(int64_t count, int threads, const Work& work) {
  std::atomic<int> failed{0};
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t index = 0; index < count; index++) {
    if (failed) continue;
    try {
      work(index);
    } catch (const std::bad_alloc&) {
      failed = 1;
    }
  }
  return failed;
}

struct Matrix {
  const uint16_t* values;
  int64_t stride;
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

// The same panels of a matrix that lies the other way: rows [0, count), whose neighbours in depth are side by
// side. depth: even.
template <int WIDTH>
AVX512 void pack_rows(Matrix from, int depth, int count, uint16_t* to) {
  const int pairs = depth / 2;
  for (int row = 0; row < (count + 7) / 8 * 8; row += 8)
    for (int pair = 0; pair < pairs; pair += 16) {
      const int left = std::min(16, pairs - pair);
      const __mmask16 mask = (1u << left) - 1;
      __m512i r[8], t[8], u[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) _mm_prefetch(from.values + (row + AHEAD + i) * from.stride + 2 * pair, _MM_HINT_T0);
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++)
        r[i] = _mm512_maskz_loadu_epi32(row + i < count ? mask : 0, from.values + (row + i) * from.stride + 2 * pair);
#pragma GCC unroll 4
      for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
      }
#pragma GCC unroll 2
      for (int i = 0; i < 8; i += 4) {  // u[i + k]: of four rows the pairs k, 4 + k, 8 + k and 12 + k
        u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
      }
      alignas(64) __m512i kept[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) _mm512_store_si512(kept + i, u[i]);
      const auto* quarters = reinterpret_cast<const __m128i*>(kept);
      uint16_t* place = to + row / WIDTH * panel_size(pairs, WIDTH) + 2 * (pair * WIDTH + row % WIDTH);
      for (int i = 0; i < left; i++, place += 2 * WIDTH) {
        _mm_store_si128(reinterpret_cast<__m128i*>(place), _mm_load_si128(quarters + 4 * (i % 4) + i / 4));
        _mm_store_si128(reinterpret_cast<__m128i*>(place + 8), _mm_load_si128(quarters + 4 * (4 + i % 4) + i / 4));
      }
    }
}

// One tile: sums of `pairs` products, added to `sums` if `add`, then stored there or, rounded, in `rounded`.
template <int VECTORS>
AVX512 void tile(const uint16_t* left, const uint16_t* right, int pairs, float* sums, int64_t stride, bool add,
                 uint16_t* rounded, int64_t rounded_stride, int rows, int columns) {
  __m512 total[TALL][VECTORS];
#pragma GCC unroll 8
  for (int i = 0; i < TALL; i++)
#pragma GCC unroll 3
    for (int j = 0; j < VECTORS; j++) total[i][j] = _mm512_setzero_ps();
  for (int i = 0; add && i < rows; i++)
    for (int j = 0; j < VECTORS; j++) _mm_prefetch(sums + i * stride + 16 * j, _MM_HINT_T0);
  for (int pair = 0; pair < pairs; pair++, left += 2 * TALL, right += 32 * VECTORS) {
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

constexpr float LOG2_E = 1.44269504f;

AVX512 inline __m512 power_of_two(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);  // in this order NaN stays NaN
  const __m512 n = _mm512_roundscale_ps(x, 8), r = _mm512_sub_ps(x, n);
  __m512 y = _mm512_set1_ps(1.535336188319500e-4f);  // Cephes' exp2f
  for (float c : {1.339887440266574e-3f, 9.618437357674640e-3f, 5.550332471162809e-2f, 2.402264791363012e-1f,
                  6.931472028550421e-1f, 1.0f})
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(c));
  return _mm512_scalef_ps(y, n);
}

AVX512 inline __mmask16 first(int count) { return count >= 16 ? 0xffff : (1u << std::max(count, 0)) - 1; }

AVX512 inline void round_to(uint16_t* place, __m512 value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(place), (__m256i)_mm512_cvtneps_pbh(value));
}

AVX512 inline __m512 widen(__mmask16 mask, const uint16_t* place) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, place)), 16));
}

}  // namespace
