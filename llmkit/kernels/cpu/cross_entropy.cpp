// The cross-entropy of rows of bf16 logits, in place: each row becomes its gradient. A row is read twice, the second
// time from the cache; its exponentials wait in fp32 until their sum is known. Contract: `RowPass`.
#include <cfloat>
#include <cmath>

namespace {

enum Pass { WHOLE, STATISTICS, GRADIENT };

// Columns from `valid` on are padding.
struct Spec {
  int columns, valid, vocab_size;
  float softcap, z_loss, smoothing;
};

// softcap tanh(x / softcap)
template <bool CAP>
AVX512 inline __m512 capped(__m512 x, float softcap) {
  if constexpr (!CAP) return x;
  const __m512 one = _mm512_set1_ps(1.0f), two = _mm512_set1_ps(2.0f);
  const __m512 e = power_of_two(_mm512_mul_ps(x, _mm512_set1_ps(2.0f * LOG2_E / softcap)));
  return _mm512_mul_ps(_mm512_set1_ps(softcap), _mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(e, one))));
}

// target: the target's column, -1 for none. weights: the gradients of nats, z-loss and smoothing, `rows` apart.
// found: the results, `rows` apart. kept: memory for the exponentials.
template <bool CAP>
AVX512 void pass_over(uint16_t* x, const Spec& s, int64_t target, const float* weights, const float* log_sum, float* found,
                      int64_t rows, Pass pass, float* kept) {
  float shift, at_target = 0.0f, total = 0.0f;
  if (target >= 0)
    at_target = target < s.valid ? _mm512_cvtss_f32(capped<CAP>(widen(1, x + target), s.softcap)) : -INFINITY;
  if (pass == GRADIENT) {
    shift = *log_sum;
  } else {
    __m512 most[2] = {_mm512_set1_ps(-FLT_MAX), _mm512_set1_ps(-FLT_MAX)}, sum = _mm512_setzero_ps();
    for (int j = 0; j < s.valid; j += 32)
      for (int i = 0; i < 2 && j + 16 * i < s.valid; i++) {
        const __mmask16 mask = first(s.valid - j - 16 * i);
        const __m512 value = widen(mask, x + j + 16 * i);
        most[i] = _mm512_mask_max_ps(most[i], mask, most[i], value);
        if (s.smoothing != 0.0f) sum = _mm512_mask_add_ps(sum, mask, sum, capped<CAP>(value, s.softcap));
      }
    shift = _mm512_reduce_max_ps(_mm512_max_ps(most[0], most[1]));  // the cap is monotonic
    if (s.valid > 0) shift = _mm512_cvtss_f32(capped<CAP>(_mm512_set1_ps(shift), s.softcap));
    total = _mm512_reduce_add_ps(sum);
  }
  __m512 sums = _mm512_setzero_ps();
  for (int j = 0; j < s.valid; j += 16) {
    const __mmask16 mask = first(s.valid - j);
    const __m512 value = capped<CAP>(widen(mask, x + j), s.softcap);
    const __m512 e = power_of_two(_mm512_mul_ps(_mm512_sub_ps(value, _mm512_set1_ps(shift)), _mm512_set1_ps(LOG2_E)));
    sums = _mm512_mask_add_ps(sums, mask, sums, e);
    if (pass != STATISTICS) _mm512_storeu_ps(kept + j, e);
  }
  const float sum = _mm512_reduce_add_ps(sums), log = pass == GRADIENT ? shift : shift + std::log(sum);
  if (pass == STATISTICS) {
    found[0] = shift, found[rows] = sum, found[2 * rows] = at_target, found[3 * rows] = total;
    return;
  }
  if (pass == WHOLE) found[0] = log, found[rows] = at_target, found[2 * rows] = total;
  const float of_probability = weights[0] + 2.0f * s.z_loss * log * weights[rows];
  const float of_each = s.smoothing / float(s.vocab_size) * weights[2 * rows];
  const float of_target = weights[0] - s.smoothing * weights[2 * rows];
  const __m512 factor = _mm512_set1_ps(pass == WHOLE ? of_probability / sum : of_probability);
  for (int j = 0; j < s.columns; j += 16) {
    const __mmask16 mask = first(s.columns - j), here = first(s.valid - j);
    __m512 gradient = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(here, kept + j), factor, _mm512_set1_ps(of_each));
    if (target >= j && target < j + 16)
      gradient = _mm512_mask_sub_ps(gradient, 1u << (target - j), gradient, _mm512_set1_ps(of_target));
    if constexpr (CAP) {
      const __m512 bounded = _mm512_div_ps(capped<CAP>(widen(mask, x + j), s.softcap), _mm512_set1_ps(s.softcap));
      gradient = _mm512_mul_ps(gradient, _mm512_fnmadd_ps(bounded, bounded, _mm512_set1_ps(1.0f)));
    }
    gradient = _mm512_maskz_mov_ps(here, gradient);
    _mm256_mask_storeu_epi16(x + j, mask, (__m256i)_mm512_cvtneps_pbh(gradient));
  }
}

}  // namespace

// x: (rows, columns) row-major. Of `log_sum` only GRADIENT reads, to `found` the others write. Returns whether memory
// was missing.
extern "C" int cross_entropy(uint16_t* x, int64_t rows, const int64_t* sizes, const double* terms, const int64_t* target,
                             const float* weights, const float* log_sum, float* found, int pass, int threads) {
  const Spec s{int(sizes[0]), int(sizes[1]), int(sizes[2]), float(terms[0]), float(terms[1]), float(terms[2])};
  return in_parallel(threads, threads, [&](int64_t part) {
    auto kept = buffer<float>(s.columns + 16);
    for (int64_t i = rows * part / threads; i < rows * (part + 1) / threads; i++)
      (s.softcap != 0.0f ? pass_over<true> : pass_over<false>)(x + i * sizes[0], s, target[i], weights + i, log_sum + i,
                                                               found + i, rows, Pass(pass), kept.get());
  });
}
