// Attention on a CPU's vector units: the kernels behind `native.py`, which states their contract.
//
// A tile is a few queries of one head, as many as two vectors have lanes. It visits the keys that one of its queries
// sees in chunks of at most kChunk, so scores exist for one tile and one chunk at a time and stay in the first-level
// cache. All products of a tile are calls of one function, `product`. Scores have queries side by side in a vector:
//
//   forward   scores [Y, T] = k q^T        mixed^T [K, T] += v^T weights
//   backward  scores [Y, T] = k q^T        d_weights [Y, T] = v d_out^T      d_q^T [K, T] += k^T d_scores
//             d_k [Y, K] += d_scores q     d_v [Y, K] += weights d_out
//
// Axes: Y keys of a chunk, T queries of a tile, K head size. The softmax runs over chunks with running sums (Milakov &
// Gimelshein 2018, arXiv 1805.02867); the backward pass recomputes it (Dao et al. 2022, arXiv 2205.14135). Logarithms
// are those of base 2. Vectors are those of the compilers' extension, which GCC and Clang turn into what the machine has.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

#ifdef __AVX512F__
constexpr int kLanes = 16;
constexpr int kRows = 12, kRowsOfHead = 8;  // rows of results in registers, of which there are 32
#else
constexpr int kLanes = 8;
constexpr int kRows = 6, kRowsOfHead = 4;  // of 16
#endif
constexpr int kTile = 2 * kLanes;  // queries
constexpr int kChunk = 48;         // keys
constexpr float kLowest = -1e30f;  // below every score; finite, so that differences are no NaN

// Memory holds them at any multiple of 4 bytes.
template <int lanes>
struct Lanes {
  typedef float Floats __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
  typedef int32_t Ints __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
};
using Floats = Lanes<kLanes>::Floats;
using Ints = Lanes<kLanes>::Ints;

template <class V>
inline V& at(float* x) {
  return *reinterpret_cast<V*>(x);
}
template <class V>
inline const V& at(const float* x) {
  return *reinterpret_cast<const V*>(x);
}

// A matrix in memory: element [i, j] is at data[i * row + j * column].
struct Matrix {
  const float* data;
  int64_t row, column;
};

// c[i, j] = (add ? c[i, j] : 0) + sum over d of a[i, d] b[d, j], for `rows` rows and J vectors of columns.
template <class V, int J, int I>
inline void product_rows(int64_t rows, int64_t depth, Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row,
                         bool add) {
  constexpr int lanes = sizeof(V) / sizeof(float);
  int64_t i = 0;
  for (; i + I <= rows; i += I) {
    const float* from = a.data + i * a.row;
    float* to = c + i * c_row;
    V sum[I][J];
#pragma GCC unroll 16
    for (int r = 0; r < I; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < J; ++j) sum[r][j] = add ? at<V>(to + r * c_row + j * lanes) : V{};
    for (int64_t d = 0; d < depth; ++d) {
      V row[J];
#pragma GCC unroll 2
      for (int j = 0; j < J; ++j) row[j] = at<V>(b + d * b_row + j * lanes);
#pragma GCC unroll 16
      for (int r = 0; r < I; ++r) {
        const float factor = from[r * a.row + d * a.column];
#pragma GCC unroll 2
        for (int j = 0; j < J; ++j) sum[r][j] += factor * row[j];
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < I; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < J; ++j) at<V>(to + r * c_row + j * lanes) = sum[r][j];
  }
  if constexpr (I > 1) {
    if (i < rows) {
      a.data += i * a.row;
      product_rows<V, J, I / 2>(rows - i, depth, a, b, b_row, c + i * c_row, c_row, add);
    }
  }
}

// [Y, T]: keys or values times a transposed tile of queries or gradients.
void product_scores(int64_t keys, int64_t size, Matrix a, const float* tile, float* c) {
  product_rows<Floats, 2, kRows>(keys, size, a, tile, kTile, c, kTile, false);
}

// [K, T] +=: transposed keys or values times weights.
void product_tile(int64_t keys, int64_t size, Matrix a, const float* weights, float* c) {
  std::swap(a.row, a.column);
  product_rows<Floats, 2, kRowsOfHead>(size, keys, a, weights, kTile, c, kTile, true);
}

// [Y, K] +=: weights times queries or gradients as they lie in memory.
void product_keys(int64_t keys, int64_t queries, int64_t size, const float* weights, const float* b, int64_t b_row,
                  float* c, int64_t c_row) {
  const Matrix a{weights, kTile, 1};
  int64_t k = 0;
  for (; k + 2 * kLanes <= size; k += 2 * kLanes)
    product_rows<Floats, 2, kRows>(keys, queries, a, b + k, b_row, c + k, c_row, true);
  for (; k + kLanes <= size; k += kLanes)
    product_rows<Floats, 1, 12>(keys, queries, a, b + k, b_row, c + k, c_row, true);
  if (k < size) product_rows<Lanes<8>::Floats, 1, 12>(keys, queries, a, b + k, b_row, c + k, c_row, true);
}

inline Floats largest(Floats a, Floats b) { return a > b ? a : b; }

// 2^x for x up to 127, with a relative error of 1.2e-7; below 2^-125 it is 2^-125. The polynomial has the smallest
// largest relative error on [-1/2, 1/2] (Lawson's algorithm).
inline Floats exp2(Floats x) {
  constexpr float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
  x = largest(x, Floats{} - 125.0f);
  const Floats shifted = x + shift;
  const Floats rest = x - (shifted - shift);
  Floats y = rest * 0x1.41d334p-13f + 0x1.5f456ap-10f;
  y = y * rest + 0x1.3b2dbcp-7f;
  y = y * rest + 0x1.c6aed4p-5f;
  y = y * rest + 0x1.ebfbdap-3f;
  y = y * rest + 0x1.62e430p-1f;
  y = y * rest + 1.0f;
  return (Floats)((Ints)y + ((Ints)shifted << 23));
}

// The error is at most 1.2e-7, relative to 1.
inline Floats tanh(Floats x) {
  constexpr float two_log2_e = 2.885390081777927f;
  x = largest(x, Floats{} - 12.0f);
  x = x > 12.0f ? Floats{} + 12.0f : x;
  return 1.0f - 2.0f / (1.0f + exp2(x * two_log2_e));
}

// Rows of vectors [B, L, H, K] and ranges [4, B, L], as `native.py` passes them.
struct Shape {
  int64_t batch, length, heads, width, kv_heads, size;

  int64_t query(int64_t b, int64_t l, int64_t h) const { return ((b * length + l) * heads + h) * size; }
  int64_t key(int64_t b, int64_t m, int64_t g) const { return ((b * width + m) * kv_heads + g) * size; }
  int64_t query_row() const { return heads * size; }
  int64_t key_row() const { return kv_heads * size; }
};

struct Rule {
  float scale, cap;  // cap 0: none

  // Factor of queries; products are then scores in units of log 2, or what `tanh` takes.
  float of_queries() const { return cap > 0 ? scale / cap : scale * kLog2E; }
  float of_tanh() const { return cap * kLog2E; }

  static constexpr float kLog2E = 1.4426950408889634f;
};

// Keys [start, start + count), and whether every query of the tile sees all of them.
struct Chunk {
  int64_t start, count;
  bool whole;
};

// What the queries of a tile see.
struct Seen {
  alignas(64) int32_t ranges[4][kTile];  // as `KeyRanges`; nothing beyond the row's end
  std::vector<Chunk> chunks;

  Seen(const Shape& shape, const int32_t* all, int64_t b, int64_t first, int64_t count) {
    const int64_t step = shape.batch * shape.length;
    for (int i = 0; i < 4; ++i)
      for (int64_t t = 0; t < kTile; ++t)
        ranges[i][t] = t < count ? all[i * step + b * shape.length + first + t] : i % 2 ? 0 : int32_t(shape.width);
    // Keys before the first end are seen whole more often than those after it.
    int64_t cut = shape.width;
    std::vector<std::pair<int64_t, int64_t>> seen, joined;
    for (int64_t t = 0; t < count; ++t) {
      if (ranges[3][t] > ranges[2][t]) cut = std::min<int64_t>(cut, ranges[3][t]);
      for (int i = 0; i < 4; i += 2)
        if (ranges[i + 1][t] > ranges[i][t]) seen.emplace_back(ranges[i][t], ranges[i + 1][t]);
    }
    std::sort(seen.begin(), seen.end());
    for (auto [start, end] : seen)
      if (joined.empty() || start > joined.back().second)
        joined.emplace_back(start, end);
      else
        joined.back().second = std::max(joined.back().second, end);
    for (auto [start, end] : joined) {
      if (start < cut && cut < end) add(start, cut, count), start = cut;
      add(start, end, count);
    }
  }

  void add(int64_t start, int64_t end, int64_t queries) {
    for (; start < end; start += kChunk) {
      const int64_t stop = std::min(end, start + kChunk);
      bool whole = true;
      for (int64_t t = 0; t < queries; ++t)
        whole &= (start >= ranges[0][t] && stop <= ranges[1][t]) || (start >= ranges[2][t] && stop <= ranges[3][t]);
      chunks.push_back({start, stop - start, whole});
    }
  }

  // Lanes of the vector at query t that see the key, as -1 or 0.
  Ints sees(int64_t key, int t) const {
    const Ints y = Ints{} + int32_t(key);
    const auto range = [&](int i) { return *reinterpret_cast<const Ints*>(&ranges[i][t]); };
    return ((y >= range(0)) & (y < range(1))) | ((y >= range(2)) & (y < range(3)));
  }
};

// Arrays of floats that begin at multiples of 64 bytes.
class Scratch {
 public:
  explicit Scratch(int64_t floats) : data_(static_cast<float*>(std::aligned_alloc(64, (floats * 4 + 63) / 64 * 64))) {}
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() { return data_; }

 private:
  float* data_;
};

// A transposed tile [K, T] of vectors that lie `row` apart, times a factor; queries beyond the row's end are 0.
void read_tile(const float* from, int64_t row, int64_t count, int64_t size, float factor, float* tile) {
  for (int64_t k = 0; k < size; ++k)
    for (int64_t t = 0; t < kTile; ++t) tile[k * kTile + t] = t < count ? from[t * row + k] * factor : 0.0f;
}

void write_tile(const float* tile, int64_t row, int64_t count, int64_t size, const float* factors, float* to) {
  for (int64_t t = 0; t < count; ++t)
    for (int64_t k = 0; k < size; ++k) to[t * row + k] = tile[k * kTile + t] * factors[t];
}

struct Forward {
  Shape shape;
  Rule rule;
  const float *q, *k, *v;
  const int32_t* ranges;
  float *out, *log_total;

  int64_t items() const { return shape.batch * shape.kv_heads; }

  // All heads of one row that read one kv-head.
  void operator()(int64_t item) const {
    const int64_t b = item / shape.kv_heads, g = item % shape.kv_heads, repeat = shape.heads / shape.kv_heads;
    const int64_t size = shape.size;
    Scratch scratch((2 * size + kChunk + 1) * kTile);
    float *q_tile = scratch.data(), *mixed = q_tile + size * kTile, *scores = mixed + size * kTile;
    float* factors = scores + kChunk * kTile;
    for (int64_t first = 0; first < shape.length; first += kTile) {
      const int64_t count = std::min<int64_t>(kTile, shape.length - first);
      const Seen seen(shape, ranges, b, first, count);
      for (int64_t h = g * repeat; h < (g + 1) * repeat; ++h) {
        read_tile(q + shape.query(b, first, h), shape.query_row(), count, size, rule.of_queries(), q_tile);
        std::fill(mixed, mixed + size * kTile, 0.0f);
        Floats high[2] = {Floats{} + kLowest, Floats{} + kLowest}, total[2] = {Floats{}, Floats{}};
        for (const Chunk& chunk : seen.chunks) {
          const int64_t from = shape.key(b, chunk.start, g);
          product_scores(chunk.count, size, {k + from, shape.key_row(), 1}, q_tile, scores);
          for (int j = 0; j < 2; ++j) softmax(seen, chunk, j, scores + j * kLanes, mixed + j * kLanes, high[j], total[j]);
          product_tile(chunk.count, size, {v + from, shape.key_row(), 1}, scores, mixed);
        }
        float* logs = log_total + (b * shape.heads + h) * shape.length + first;
        for (int64_t t = 0; t < count; ++t) {
          const float sum = total[t / kLanes][t % kLanes];
          factors[t] = sum > 0.0f ? 1.0f / sum : 0.0f;
          logs[t] = sum > 0.0f ? high[t / kLanes][t % kLanes] + __builtin_log2f(sum) : 0.0f;
        }
        write_tile(mixed, shape.query_row(), count, size, factors, out + shape.query(b, first, h));
      }
    }
  }

  // Turns a column of vectors of scores into weights, and shrinks what was summed before to their new scale.
  void softmax(const Seen& seen, const Chunk& chunk, int j, float* scores, float* mixed, Floats& high,
               Floats& total) const {
    Floats higher = high;
    if (rule.cap > 0 || !chunk.whole)
      for (int64_t y = 0; y < chunk.count; ++y) {
        Floats& score = at<Floats>(scores + y * kTile);
        if (rule.cap > 0) score = tanh(score) * rule.of_tanh();
        if (!chunk.whole) score = seen.sees(chunk.start + y, j * kLanes) ? score : Floats{} + kLowest;
      }
    for (int64_t y = 0; y < chunk.count; ++y) higher = largest(higher, at<Floats>(scores + y * kTile));
    const Floats shrink = exp2(high - higher);
    total *= shrink;
    for (int64_t y = 0; y < chunk.count; ++y) {
      Floats& score = at<Floats>(scores + y * kTile);
      Floats weight = exp2(score - higher);
      if (!chunk.whole) weight = score > kLowest ? weight : Floats{};
      total += weight;
      score = weight;
    }
    for (int64_t i = 0; i < shape.size; ++i) at<Floats>(mixed + i * kTile) *= shrink;
    high = higher;
  }
};

struct Backward {
  Shape shape;
  Rule rule;
  const float *q, *k, *v;
  const int32_t* ranges;
  const float *out, *log_total, *d_out;
  float *d_q, *d_k, *d_v;

  int64_t items() const { return shape.batch * shape.kv_heads; }

  void operator()(int64_t item) const {
    const int64_t b = item / shape.kv_heads, g = item % shape.kv_heads, repeat = shape.heads / shape.kv_heads;
    const int64_t size = shape.size;
    Scratch scratch((3 * size + 2 * kChunk + 3) * kTile);
    float *q_tile = scratch.data(), *d_out_tile = q_tile + size * kTile, *d_q_tile = d_out_tile + size * kTile;
    float *scores = d_q_tile + size * kTile, *d_weights = scores + kChunk * kTile;
    float *logs = d_weights + kChunk * kTile, *means = logs + kTile, *factors = means + kTile;
    std::fill(factors, factors + kTile, rule.scale);
    for (int64_t m = 0; m < shape.width; ++m) {
      std::fill_n(d_k + shape.key(b, m, g), size, 0.0f);
      std::fill_n(d_v + shape.key(b, m, g), size, 0.0f);
    }
    for (int64_t first = 0; first < shape.length; first += kTile) {
      const int64_t count = std::min<int64_t>(kTile, shape.length - first);
      const Seen seen(shape, ranges, b, first, count);
      for (int64_t h = g * repeat; h < (g + 1) * repeat; ++h) {
        const int64_t here = shape.query(b, first, h), row = shape.query_row();
        read_tile(q + here, row, count, size, rule.of_queries(), q_tile);
        read_tile(d_out + here, row, count, size, 1.0f, d_out_tile);
        std::fill(d_q_tile, d_q_tile + size * kTile, 0.0f);
        for (int64_t t = 0; t < kTile; ++t) {
          // The sum over keys of weight times gradient of weight is the product of output and gradient.
          means[t] = 0.0f;
          if (t < count)
            for (int64_t i = 0; i < size; ++i) means[t] += out[here + t * row + i] * d_out[here + t * row + i];
          logs[t] = t < count ? log_total[(b * shape.heads + h) * shape.length + first + t] : 0.0f;
        }
        for (const Chunk& chunk : seen.chunks) {
          const int64_t from = shape.key(b, chunk.start, g), key_row = shape.key_row();
          product_scores(chunk.count, size, {k + from, key_row, 1}, q_tile, scores);
          product_scores(chunk.count, size, {v + from, key_row, 1}, d_out_tile, d_weights);
          for (int j = 0; j < kTile; j += kLanes)
            gradients(seen, chunk, j, at<Floats>(logs + j), at<Floats>(means + j), scores + j, d_weights + j);
          product_keys(chunk.count, count, size, scores, d_out + here, row, d_v + from, key_row);
          product_keys(chunk.count, count, size, d_weights, q + here, row, d_k + from, key_row);
          product_tile(chunk.count, size, {k + from, key_row, 1}, d_weights, d_q_tile);
        }
        write_tile(d_q_tile, row, count, size, factors, d_q + here);
      }
    }
    for (int64_t m = 0; m < shape.width; ++m)
      for (int64_t i = 0; i < size; ++i) d_k[shape.key(b, m, g) + i] *= rule.scale;
  }

  // Turns columns of scores into weights, and gradients of weights into gradients of products of query and key.
  void gradients(const Seen& seen, const Chunk& chunk, int t, Floats log, Floats mean, float* scores,
                 float* d_weights) const {
    if (rule.cap > 0 || !chunk.whole)
      for (int64_t y = 0; y < chunk.count; ++y) {
        Floats &score = at<Floats>(scores + y * kTile), &d_score = at<Floats>(d_weights + y * kTile);
        Floats slope = Floats{} + 1.0f;
        if (rule.cap > 0) {
          const Floats squeezed = tanh(score);
          slope = 1.0f - squeezed * squeezed;
          score = squeezed * rule.of_tanh();
        }
        score = seen.sees(chunk.start + y, t) ? exp2(score - log) : Floats{};
        d_score = score * (d_score - mean) * slope;
      }
    else
      for (int64_t y = 0; y < chunk.count; ++y) {
        Floats &score = at<Floats>(scores + y * kTile), &d_score = at<Floats>(d_weights + y * kTile);
        score = exp2(score - log);
        d_score = score * (d_score - mean);
      }
  }
};

// Runs all items on this thread and up to `threads - 1` others of the pool, whichever are free. A thread of the pool
// that comes late finds nothing to do, so nobody waits for one that has not begun.
template <class Work>
void run(const Work& work, ffi::ThreadPool& pool, int64_t threads) {
  const int64_t items = work.items();
  threads = std::min(threads, items);
  if (threads <= 1) {
    for (int64_t item = 0; item < items; ++item) work(item);
    return;
  }
  struct Shared {
    Work work;
    std::atomic<int64_t> next{0}, done{0};

    explicit Shared(const Work& work) : work(work) {}
    void help() {
      for (int64_t item; (item = next.fetch_add(1)) < work.items(); done.fetch_add(1)) work(item);
    }
  };
  auto shared = std::make_shared<Shared>(work);
  for (int64_t i = 1; i < threads; ++i) pool.Schedule([shared] { shared->help(); });
  shared->help();
  while (shared->done.load() < items) std::this_thread::yield();
}

using FloatArray = ffi::Buffer<ffi::F32>;
using IntArray = ffi::Buffer<ffi::S32>;
using FloatResult = ffi::Result<FloatArray>;

Shape shape_of(const FloatArray& q, const FloatArray& k) {
  const auto of_q = q.dimensions(), of_k = k.dimensions();
  return {of_q[0], of_q[1], of_q[2], of_k[1], of_k[2], of_q[3]};
}

ffi::Error forward(ffi::ThreadPool pool, FloatArray q, FloatArray k, FloatArray v, IntArray ranges, FloatResult out,
                   FloatResult log_total, float scale, float cap, int64_t threads) {
  const Forward work{shape_of(q, k),      {scale, cap},       q.typed_data(),   k.typed_data(),
                     v.typed_data(),      ranges.typed_data(), out->typed_data(), log_total->typed_data()};
  run(work, pool, threads);
  return ffi::Error::Success();
}

ffi::Error backward(ffi::ThreadPool pool, FloatArray q, FloatArray k, FloatArray v, IntArray ranges, FloatArray out,
                    FloatArray log_total, FloatArray d_out, FloatResult d_q, FloatResult d_k, FloatResult d_v,
                    float scale, float cap, int64_t threads) {
  const Backward work{shape_of(q, k),   {scale, cap},           q.typed_data(),     k.typed_data(),
                      v.typed_data(),   ranges.typed_data(),    out.typed_data(),   log_total.typed_data(),
                      d_out.typed_data(), d_q->typed_data(),    d_k->typed_data(),  d_v->typed_data()};
  run(work, pool, threads);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(attention_forward, forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<FloatArray>()
                                  .Arg<FloatArray>()
                                  .Arg<FloatArray>()
                                  .Arg<IntArray>()
                                  .Ret<FloatArray>()
                                  .Ret<FloatArray>()
                                  .Attr<float>("scale")
                                  .Attr<float>("cap")
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(attention_backward, backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<FloatArray>()
                                  .Arg<FloatArray>()
                                  .Arg<FloatArray>()
                                  .Arg<IntArray>()
                                  .Arg<FloatArray>()
                                  .Arg<FloatArray>()
                                  .Arg<FloatArray>()
                                  .Ret<FloatArray>()
                                  .Ret<FloatArray>()
                                  .Ret<FloatArray>()
                                  .Attr<float>("scale")
                                  .Attr<float>("cap")
                                  .Attr<int64_t>("threads"));
