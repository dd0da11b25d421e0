// Newton-Schulz iteration of bf16 matrices, x <- a x + (b g + c g g) x with g = x x', and the passes over
// memory around it in Muon's update.
//
// Products have fp32 sums and are rounded once, together with what is added to them. Of a symmetric result the
// upper half is computed and mirrored. Each matrix is one thread's, so that results do not depend on their number.
#include <cmath>

namespace {

constexpr int WIDE = 32;  // columns of a tile

// out = alpha left right + beta source, of (rows, depth) and (depth, columns), where `packed` holds `right` as panels.
//
// left: rows up to a multiple of TALL can be read, and so can depth up to an even number.
struct Product {
  const uint16_t* left;
  int64_t left_stride;
  const uint16_t* packed;
  int depth, rows, columns;
  uint16_t* out;
  int64_t out_stride;
  float alpha, beta;
  const uint16_t* source;  // like out; not read where beta is 0
};

AVX512 void product_tile(const Product& p, int row, int column, const uint16_t* right) {
  __m512 total[TALL][2];
#pragma GCC unroll 8
  for (int i = 0; i < TALL; i++)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) total[i][j] = _mm512_setzero_ps();
  const uint16_t* left = p.left + row * p.left_stride;
  for (int at = 0; at < p.depth; at += 2, right += 2 * WIDE) {
    __m512bh b[2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) b[j] = (__m512bh)_mm512_load_si512(right + 32 * j);
#pragma GCC unroll 8
    for (int i = 0; i < TALL; i++) {
      const __m512bh a = (__m512bh)_mm512_set1_epi32(*reinterpret_cast<const int*>(left + i * p.left_stride + at));
#pragma GCC unroll 2
      for (int j = 0; j < 2; j++) total[i][j] = _mm512_dpbf16_ps(total[i][j], a, b[j]);
    }
  }
  const __m512 alpha = _mm512_set1_ps(p.alpha), beta = _mm512_set1_ps(p.beta);
  const __mmask16 mask[2] = {first(p.columns - column), first(p.columns - column - 16)};
  const __mmask32 both = mask[0] | __mmask32(mask[1]) << 16;
#pragma GCC unroll 8
  for (int i = 0; i < TALL; i++) {
    if (row + i >= p.rows) continue;
    const int64_t at = (row + i) * p.out_stride + column;
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      total[i][j] = _mm512_mul_ps(total[i][j], alpha);
      if (p.beta != 0.0f) total[i][j] = _mm512_fmadd_ps(beta, widen(mask[j], p.source + at + 16 * j), total[i][j]);
    }
    _mm512_mask_storeu_epi16(p.out + at, both, (__m512i)_mm512_cvtne2ps_pbh(total[i][1], total[i][0]));
  }
}

// to[column][row] = from[row][column]
AVX512 void transpose(const uint16_t* from, int64_t from_stride, uint16_t* to, int64_t to_stride, int rows, int columns) {
  for (int row = 0; row < rows; row += 8)
    for (int column = 0; column < columns; column += 8) {
      if (rows - row < 8 || columns - column < 8) {
        for (int i = row; i < std::min(rows, row + 8); i++)
          for (int j = column; j < std::min(columns, column + 8); j++) to[j * to_stride + i] = from[i * from_stride + j];
        continue;
      }
      __m128i a[8], b[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + (row + i) * from_stride + column));
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        b[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm_unpacklo_epi16(b[i], b[i + 4]);
        a[2 * i + 1] = _mm_unpackhi_epi16(b[i], b[i + 4]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        b[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
      }
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + (column + i) * to_stride + row), b[i]);
    }
}

// symmetric: the product is; its lower half is not computed but mirrored.
AVX512 void product(const Product& p, bool symmetric) {
  const int64_t panel = panel_size(p.depth / 2, WIDE);
  for (int column = 0; column < p.columns; column += WIDE) {
    const int rows = symmetric ? std::min(p.rows, column + WIDE) : p.rows;
    for (int row = 0; row < rows; row += TALL) product_tile(p, row, column, p.packed + column / WIDE * panel);
    if (symmetric)
      transpose(p.out + column, p.out_stride, p.out + column * p.out_stride, p.out_stride, column, std::min(WIDE, p.columns - column));
  }
}

int64_t up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// A matrix with rows and columns of zeros up to what a product reads at once.
struct Scratch {
  int64_t stride, size;
  std::unique_ptr<uint16_t[], Free> values;
  Scratch(int rows, int columns) : stride(up(columns, 32) + 32), size(up(rows, TALL) * stride), values(buffer<uint16_t>(size)) {
    std::fill_n(values.get(), size, 0);
  }
  Matrix matrix() const { return {values.get(), stride}; }
};

AVX512 void iterate(const uint16_t* from, uint16_t* to, int rows, int columns, const float* coefficients, int rounds) {
  const bool tall = rows > columns;
  const int m = std::min(rows, columns), n = std::max(rows, columns);
  Scratch x(m, n), next(m, n), gram(m, m), polynomial(m, m);
  const int even_m = up(m, 2), even_n = up(n, 2);
  const int64_t panels = up(m, WIDE) / WIDE * panel_size(even_n / 2, WIDE), across = up(n, WIDE) / WIDE * panel_size(even_m / 2, WIDE);
  auto packed = buffer<uint16_t>(std::max(panels, across));
  if (tall) transpose(from, columns, x.values.get(), x.stride, rows, columns);
  else
    for (int row = 0; row < m; row++) std::copy_n(from + row * int64_t(n), n, x.values.get() + row * x.stride);
  double squares = 0.0;
  for (int row = 0; row < m; row++) {
    __m512 sum = _mm512_setzero_ps();
    for (int column = 0; column < n; column += 16) {
      const __m512 value = widen(0xffff, x.values.get() + row * x.stride + column);
      sum = _mm512_fmadd_ps(value, value, sum);
    }
    squares += _mm512_reduce_add_ps(sum);
  }
  const __m512 scale = _mm512_set1_ps(float(1.0 / (std::sqrt(squares) + 1e-7)));
  for (int64_t i = 0; i < x.size; i += 16)
    round_to(x.values.get() + i, _mm512_mul_ps(widen(0xffff, x.values.get() + i), scale));
  for (int round = 0; round < rounds; round++, coefficients += 3) {
    const float a = coefficients[0], b = coefficients[1], c = coefficients[2];
    auto multiply = [&](const Scratch& left, int depth, int width, Scratch& out, float alpha, float beta, const Scratch& source) {
      product({left.values.get(), left.stride, packed.get(), depth, m, width, out.values.get(), out.stride, alpha, beta, source.values.get()},
              &out != &next);
    };
    pack_rows<WIDE>(x.matrix(), even_n, m, packed.get());
    multiply(x, even_n, m, gram, 1.0f, 0.0f, gram);
    pack<WIDE>(gram.matrix(), even_m, m, packed.get());
    multiply(gram, even_m, m, polynomial, c, b, gram);
    pack<WIDE>(x.matrix(), even_m, n, packed.get());
    multiply(polynomial, even_m, n, next, 1.0f, a, x);
    std::swap(x.values, next.values);
  }
  if (tall) transpose(x.values.get(), x.stride, to, columns, m, n);
  else
    for (int row = 0; row < m; row++) std::copy_n(x.values.get() + row * x.stride, n, to + row * int64_t(n));
}

AVX512 inline void both(const float* gradient, float* buffer, uint16_t* out, int count, float scale, float beta, bool skipped) {
  const __mmask16 mask = first(count);
  const __m512 old = _mm512_maskz_loadu_ps(mask, buffer);
  __m512 ahead = old;
  if (!skipped) {
    const __m512 g = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, gradient), _mm512_set1_ps(scale));
    const __m512 moved = _mm512_fmadd_ps(_mm512_set1_ps(1.0f - beta), _mm512_sub_ps(g, old), old);
    _mm512_mask_storeu_ps(buffer, mask, moved);
    ahead = _mm512_fmadd_ps(_mm512_set1_ps(beta), _mm512_sub_ps(moved, g), g);
  }
  const __m512i half = _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(ahead));
  _mm512_mask_storeu_epi16(out, mask, half);
}

AVX512 void look_ahead_of(const float* gradient, float* buffer, uint16_t* out, int64_t numel, float scale, float beta, bool skipped) {
  for (int64_t i = 0; i < numel; i += 16) both(gradient + i, buffer + i, out + i, int(std::min<int64_t>(16, numel - i)), scale, beta, skipped);
}

AVX512 void descend_along(float* weight, const uint16_t* update, uint16_t* rounded, int64_t numel, float kept, float size) {
  for (int64_t i = 0; i < numel; i += 16) {
    const __mmask16 mask = first(int(std::min<int64_t>(16, numel - i)));
    const __m512 moved = _mm512_sub_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, weight + i), _mm512_set1_ps(kept)),
                                       _mm512_mul_ps(widen(mask, update + i), _mm512_set1_ps(size)));
    _mm512_mask_storeu_ps(weight + i, mask, moved);
    if (rounded) _mm512_mask_storeu_epi16(rounded + i, mask, _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(moved)));
  }
}

constexpr int64_t BLOCK = 1 << 14;  // elements that a thread takes at once

}  // namespace

extern "C" void look_ahead(const float* const* gradients, float* const* buffers, uint16_t* const* out, const int64_t* numels, int64_t count,
                           float scale, float beta, int skipped, int threads) {
  for (int64_t k = 0; k < count; k++)
#pragma omp parallel for num_threads(threads) if (numels[k] > BLOCK) schedule(static)
    for (int64_t i = 0; i < numels[k]; i += BLOCK)
      look_ahead_of(gradients[k] + i, buffers[k] + i, out[k] + i, std::min(BLOCK, numels[k] - i), scale, beta, skipped);
}

// rounded: or null.
extern "C" void descend(float* const* weights, const uint16_t* const* updates, uint16_t* const* rounded, const int64_t* numels, int64_t count,
                        const float* kept, const float* sizes, int threads) {
  for (int64_t k = 0; k < count; k++)
#pragma omp parallel for num_threads(threads) if (numels[k] > BLOCK) schedule(static)
    for (int64_t i = 0; i < numels[k]; i += BLOCK)
      descend_along(weights[k] + i, updates[k] + i, rounded ? rounded[k] + i : nullptr, std::min(BLOCK, numels[k] - i), kept[k], sizes[k]);
}

// matrices: `count` of them, contiguous; results go to `out`. coefficients: three a round. Returns whether memory was
// missing.
extern "C" int orthogonalise(const uint16_t* const* matrices, uint16_t* const* out, const int64_t* rows, const int64_t* columns, int64_t count,
                             const float* coefficients, int rounds, int threads) {
  return in_parallel(count, threads, [&](int64_t i) {
    iterate(matrices[i], out[i], int(rows[i]), int(columns[i]), coefficients, rounds);
  });
}
