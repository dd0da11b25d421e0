// The gradients of a linear layer, products of bf16 matrices with sums in fp32: of its weight, out (+)= left' right, and
// of its input, out = left right.
//
// left: (depth, rows), or (rows, depth) for the input; right: (depth, columns), out: (rows, columns), in fp32 or bf16.
// oneDNN transposes the left matrix of the former; here two rows of a matrix are interleaved, which costs a fraction of
// that. The order of the sums depends on the sizes alone, not on the number of threads.
namespace {

constexpr int VECTORS = 3, WIDE = 16 * VECTORS;
constexpr int DEPTH = 256;                                 // a panel of `right` takes 24 KiB
constexpr int ROWS = 384, COLUMNS = 768;                   // packed pieces take 192 and 384 KiB
constexpr int WAITING = 1 << 20;                           // fp32 sums that wait to be complete before they are rounded

struct Output {
  void* values;
  int64_t stride;
  bool bf16;
};

// The product for one thread. ROWWISE: left is (rows, depth).
template <bool ROWWISE>
AVX512 void multiply(Matrix left, Matrix right, Output out, int64_t depth, int64_t rows, int64_t columns, bool add) {
  if (rows <= 0 || columns <= 0) return;
  const int64_t left_panels = (ROWS + 32) / TALL, right_panels = (COLUMNS + 32) / WIDE + 1;
  const int64_t sizes[] = {2 * left_panels * panel_size(DEPTH / 2, TALL), 2 * right_panels * panel_size(DEPTH / 2, WIDE),
                           out.bf16 ? 4 * int64_t(WAITING) : 0};
  const auto memory = buffer<char>(sizes[0] + sizes[1] + sizes[2]);
  auto* packed_left = reinterpret_cast<uint16_t*>(memory.get());
  auto* packed_right = reinterpret_cast<uint16_t*>(memory.get() + sizes[0]);
  auto* waiting = reinterpret_cast<float*>(memory.get() + sizes[0] + sizes[1]);
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
          if constexpr (ROWWISE)
            pack_rows<TALL>({left.values + row * left.stride + begin, left.stride}, deep, tall, packed_left);
          else
            pack<TALL>({left.values + begin * left.stride + row, left.stride}, deep, tall, packed_left);
          for (int j = 0; j < wide; j += WIDE)
            for (int i = 0; i < tall; i += TALL) {
              const int64_t at = (row + i) * out.stride + column + j;
              float* sums = out.bf16 ? waiting + (row - band + i) * wide + j : static_cast<float*>(out.values) + at;
              tile<VECTORS>(packed_left + i / TALL * panel_size(pairs, TALL), packed_right + j / WIDE * panel_size(pairs, WIDE),
                   pairs, sums, out.bf16 ? wide : out.stride, add || begin > 0,
                   out.bf16 && last ? static_cast<uint16_t*>(out.values) + at : nullptr, out.stride,
                   std::min(TALL, tall - i), std::min(WIDE, wide - j));
            }
        }
      }
    }
  }
}

// Each thread computes a rectangle of `out`. Returns whether memory was missing.
template <bool ROWWISE>
int in_rectangles(Matrix left, Matrix right, Output out, int64_t depth, int64_t rows, int64_t columns, bool add, int threads) {
  int across = 1;  // rectangles side by side: those whose sides are shortest pack least
  for (int i = 1; i <= threads; i++)
    if (threads % i == 0 && rows * i / threads + columns / i < rows * across / threads + columns / across) across = i;
  const int down = threads / across;
  const int64_t tall = ((rows + down - 1) / down + 31) / 32 * 32, wide = ((columns + across - 1) / across + 31) / 32 * 32;
  return in_parallel(threads, threads, [&](int64_t index) {
    const int64_t row = index % down * tall, column = index / down * wide;
    auto* place = static_cast<char*>(out.values) + (row * out.stride + column) * (out.bf16 ? 2 : 4);
    multiply<ROWWISE>({left.values + (ROWWISE ? row * left.stride : row), left.stride}, {right.values + column, right.stride},
                      {place, out.stride, out.bf16}, depth, std::min(tall, rows - row), std::min(wide, columns - column), add);
  });
}

}  // namespace

// add: to what is in `out`, which then must be fp32.
extern "C" int weight_gradient(const uint16_t* left, int64_t left_stride, const uint16_t* right, int64_t right_stride,
                               void* out, int64_t out_stride, int64_t depth, int64_t rows, int64_t columns, int bf16,
                               int add, int threads) {
  return in_rectangles<false>({left, left_stride}, {right, right_stride}, {out, out_stride, bf16 != 0}, depth, rows,
                              columns, add != 0, threads);
}

// depth: even. out: in bf16.
extern "C" int input_gradient(const uint16_t* left, int64_t left_stride, const uint16_t* right, int64_t right_stride,
                              void* out, int64_t out_stride, int64_t depth, int64_t rows, int64_t columns, int threads) {
  return in_rectangles<true>({left, left_stride}, {right, right_stride}, {out, out_stride, true}, depth, rows, columns,
                             false, threads);
}
