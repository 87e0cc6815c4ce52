// Attention on a CPU's vector units: the kernels behind `native.py`, which states their contract.
//
// Queries of one head are taken in groups of kGroup, and a group in tiles of two vectors. The keys that a group sees come
// in chunks of at most kChunk, so scores exist for one group and one chunk at a time and stay in the first-level cache. A
// tile passes over chunks of which it sees no key. All products are calls of one function, `product_rows`:
//
//   forward   scores [Y, T] = k q^T        mixed^T [K, T] += v^T weights
//   backward  scores [Y, T] = k q^T        d_weights [Y, T] = v d_out^T      d_q^T [K, T] += k^T d_scores
//             d_k [Y, K] += d_scores q     d_v [Y, K] += weights d_out
//
// Axes: Y keys of a chunk, X queries of a group, T of a tile, K head size. The softmax runs over chunks with running sums
// (Milakov & Gimelshein 2018, arXiv 1805.02867); the backward pass recomputes it (Dao et al. 2022, arXiv 2205.14135).
// Logarithms are those of base 2. Vectors are those of the compilers' extension, which GCC and Clang turn into what the
// machine has.

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
constexpr int kGroup = 64;         // queries
constexpr int kTiles = kGroup / kTile;
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

// Factors of a product: element [i, d] is at data[i * row + d], or where they lie transposed at data[d * row + i].
template <bool transposed>
struct Factors {
  const float* data;
  int64_t row;

  float operator()(int64_t i, int64_t d) const { return transposed ? data[d * row + i] : data[i * row + d]; }
  Factors from(int64_t i) const { return {data + (transposed ? i : i * row), row}; }
};

// c[i, j] = (add ? c[i, j] : 0) + sum over d of a[i, d] b[d, j], for `rows` rows and J vectors of columns, I rows at a
// time.
template <class V, int J, int I, bool add, bool transposed>
inline void product_rows(int64_t rows, int64_t depth, Factors<transposed> a, const float* b, int64_t b_row, float* c,
                         int64_t c_row) {
  constexpr int lanes = sizeof(V) / sizeof(float);
  for (; rows >= I; rows -= I, a = a.from(I), c += I * c_row) {
    V sum[I][J];
#pragma GCC unroll 16
    for (int i = 0; i < I; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < J; ++j) sum[i][j] = add ? at<V>(c + i * c_row + j * lanes) : V{};
    for (int64_t d = 0; d < depth; ++d) {
      V row[J];
#pragma GCC unroll 2
      for (int j = 0; j < J; ++j) row[j] = at<V>(b + d * b_row + j * lanes);
#pragma GCC unroll 16
      for (int i = 0; i < I; ++i) {
        const float factor = a(i, d);
#pragma GCC unroll 2
        for (int j = 0; j < J; ++j) sum[i][j] += factor * row[j];
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < I; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < J; ++j) at<V>(c + i * c_row + j * lanes) = sum[i][j];
  }
  constexpr int fewer = I == 6 ? 4 : I / 2;
  if constexpr (I > 1)
    if (rows > 0) product_rows<V, J, fewer, add>(rows, depth, a, b, b_row, c, c_row);
}

// [Y, T]: keys or values times a transposed tile of queries or gradients.
void product_scores(int64_t keys, int64_t size, const float* a, const float* tile, float* scores) {
  product_rows<Floats, 2, kRows, false, false>(keys, size, {a, size}, tile, kTile, scores, kGroup);
}

// [K, T] +=: transposed keys or values times weights.
void product_tile(int64_t keys, int64_t size, const float* a, const float* weights, float* tile) {
  if (size < 32)  // a multiple of 8, of which few rows are left over
    product_rows<Floats, 2, kRowsOfHead, true, true>(size, keys, {a, size}, weights, kGroup, tile, kTile);
  else
    product_rows<Floats, 2, kRows, true, true>(size, keys, {a, size}, weights, kGroup, tile, kTile);
}

// [Y, K] +=: weights times queries or gradients.
void product_keys(int64_t keys, int64_t queries, int64_t size, const float* weights, const float* b, float* c,
                  int64_t c_row) {
  const Factors<false> a{weights, kGroup};
  int64_t k = 0;
  for (; k + 2 * kLanes <= size; k += 2 * kLanes)
    product_rows<Floats, 2, kRows, true>(keys, queries, a, b + k, size, c + k, c_row);
  for (; k + kLanes <= size; k += kLanes)
    product_rows<Floats, 1, 12, true>(keys, queries, a, b + k, size, c + k, c_row);
  if (k < size) product_rows<Lanes<8>::Floats, 1, 12, true>(keys, queries, a, b + k, size, c + k, c_row);
}

// Where x is no number, the following give none either: training must see it.
inline Floats at_least(Floats x, float low) { return x < low ? Floats{} + low : x; }
inline Floats at_most(Floats x, float high) { return x > high ? Floats{} + high : x; }

// 2^x for x up to 127, with a relative error of 1.2e-7; below 2^-125 it is 2^-125. The polynomial has the smallest
// largest relative error on [-1/2, 1/2] (Lawson's algorithm).
inline Floats exp2(Floats x) {
  constexpr float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
  x = at_least(x, -125.0f);
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
  return 1.0f - 2.0f / (1.0f + exp2(at_most(at_least(x, -12.0f), 12.0f) * two_log2_e));
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

enum Sight : int8_t { kNothing, kPart, kWhole };

// Keys [start, start + count), and how much of them each tile's queries see.
struct Chunk {
  int64_t start, count;
  Sight sight[kTiles];
};

// Queries [first, first + count) of row b, and what they see.
struct Group {
  int64_t b, first, count;
  int32_t ranges[4][kGroup];  // as `KeyRanges`; nothing beyond the row's end
  std::vector<Chunk> chunks;

  Group(const Shape& shape, const int32_t* all, int64_t b, int64_t first)
      : b(b), first(first), count(std::min<int64_t>(kGroup, shape.length - first)) {
    const int64_t step = shape.batch * shape.length;
    for (int i = 0; i < 4; ++i)
      for (int64_t x = 0; x < kGroup; ++x)
        ranges[i][x] = x < count ? all[i * step + b * shape.length + first + x] : i % 2 ? 0 : int32_t(shape.width);
    std::vector<std::pair<int64_t, int64_t>> seen, joined;
    std::vector<int64_t> cuts;
    for (int64_t x = 0; x < count; ++x)
      for (int i = 0; i < 4; i += 2)
        if (ranges[i][x] < ranges[i + 1][x]) seen.emplace_back(ranges[i][x], ranges[i + 1][x]);
    // Keys up to a tile's first query are seen whole by this tile, and those after it by no earlier one.
    for (int64_t x = 0; x < count; x += kTile)
      if (ranges[2][x] < ranges[3][x]) cuts.push_back(ranges[3][x]);
    std::sort(seen.begin(), seen.end());
    for (auto [start, end] : seen)
      if (joined.empty() || start > joined.back().second)
        joined.emplace_back(start, end);
      else
        joined.back().second = std::max(joined.back().second, end);
    for (auto [start, end] : joined) {
      for (int64_t cut : cuts)
        if (start < cut && cut < end) add(start, cut), start = cut;
      add(start, end);
    }
  }

  void add(int64_t start, int64_t end) {
    for (; start < end; start += kChunk) {
      Chunk chunk{start, std::min<int64_t>(kChunk, end - start), {}};
      for (int tile = 0; tile < kTiles; ++tile) chunk.sight[tile] = sight(start, start + chunk.count, tile * kTile);
      chunks.push_back(chunk);
    }
  }

  Sight sight(int64_t start, int64_t end, int64_t tile) const {
    bool any = false, all = true;
    for (int64_t x = tile; x < std::min(tile + kTile, count); ++x) {
      const auto inside = [&](int i) { return start >= ranges[i][x] && end <= ranges[i + 1][x]; };
      const auto meets = [&](int i) { return std::max<int64_t>(start, ranges[i][x]) < std::min<int64_t>(end, ranges[i + 1][x]); };
      any |= meets(0) || meets(2);
      all &= inside(0) || inside(2);
    }
    return !any ? kNothing : all ? kWhole : kPart;
  }

  // Lanes of the vector at query x that see the key, as -1 or 0.
  Ints sees(int64_t key, int64_t x) const {
    const Ints y = Ints{} + int32_t(key);
    const auto range = [&](int i) { return *reinterpret_cast<const Ints*>(&ranges[i][x]); };
    return ((y >= range(0)) & (y < range(1))) | ((y >= range(2)) & (y < range(3)));
  }
};

std::vector<Group> groups_of(const Shape& shape, const int32_t* ranges) {
  std::vector<Group> groups;
  for (int64_t b = 0; b < shape.batch; ++b)
    for (int64_t first = 0; first < shape.length; first += kGroup) groups.emplace_back(shape, ranges, b, first);
  return groups;
}

// Arrays of floats, each of which begins at a multiple of 64 bytes.
class Scratch {
 public:
  explicit Scratch(int64_t floats) : data_(static_cast<float*>(std::aligned_alloc(64, padded(floats) * 4))), free_(data_) {}
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* take(int64_t floats) {
    float* array = free_;
    free_ += padded(floats);
    return array;
  }

 private:
  static int64_t padded(int64_t floats) { return (floats + 15) / 16 * 16; }
  float *data_, *free_;
};

// `count` vectors that lie `row` apart, one after another; those missing to `whole` are 0.
void read_vectors(const float* from, int64_t row, int64_t count, int64_t whole, int64_t size, float* to) {
  using Eight = Lanes<8>::Floats;
  for (int64_t x = 0; x < count; ++x)
    for (int64_t k = 0; k < size; k += 8) at<Eight>(to + x * size + k) = at<Eight>(from + x * row + k);
  std::fill(to + count * size, to + whole * size, 0.0f);
}

// The vectors of a group as transposed tiles [K, T], times a factor.
void transpose(const float* vectors, int64_t size, float factor, float* tiles) {
  for (int64_t x = 0; x < kGroup; ++x)
    for (int64_t k = 0; k < size; ++k) tiles[(x / kTile * size + k) * kTile + x % kTile] = vectors[x * size + k] * factor;
}

// The first `count` vectors of transposed tiles, each times its factor.
void write_tiles(const float* tiles, int64_t row, int64_t count, int64_t size, const float* factors, float* to) {
  for (int64_t x = 0; x < count; ++x)
    for (int64_t k = 0; k < size; ++k) to[x * row + k] = tiles[(x / kTile * size + k) * kTile + x % kTile] * factors[x];
}

struct Forward {
  Shape shape;
  Rule rule;
  std::vector<Group> groups;
  const float *q, *k, *v;
  float *out, *log_total;

  int64_t items() const { return groups.size() * shape.kv_heads; }

  // The heads of one group that read one kv-head.
  void operator()(int64_t item) const {
    const Group& group = groups[item / shape.kv_heads];
    const int64_t g = item % shape.kv_heads, repeat = shape.heads / shape.kv_heads, size = shape.size;
    Scratch scratch((3 * kGroup + 2 * kChunk) * size + (kChunk + 3) * kGroup);
    float *q_rows = scratch.take(kGroup * size), *q_tiles = scratch.take(kGroup * size);
    float *mixed = scratch.take(kGroup * size), *k_rows = scratch.take(kChunk * size);
    float *v_rows = scratch.take(kChunk * size), *scores = scratch.take(kChunk * kGroup);
    float *high = scratch.take(kGroup), *total = scratch.take(kGroup), *factors = scratch.take(kGroup);
    for (int64_t h = g * repeat; h < (g + 1) * repeat; ++h) {
      const int64_t here = shape.query(group.b, group.first, h);
      read_vectors(q + here, shape.query_row(), group.count, kGroup, size, q_rows);
      transpose(q_rows, size, rule.of_queries(), q_tiles);
      std::fill(mixed, mixed + kGroup * size, 0.0f);
      std::fill(high, high + kGroup, kLowest);
      std::fill(total, total + kGroup, 0.0f);
      for (const Chunk& chunk : group.chunks) {
        const int64_t from = shape.key(group.b, chunk.start, g);
        read_vectors(k + from, shape.key_row(), chunk.count, chunk.count, size, k_rows);
        read_vectors(v + from, shape.key_row(), chunk.count, chunk.count, size, v_rows);
        for (int tile = 0; tile < kTiles; ++tile) {
          if (chunk.sight[tile] == kNothing) continue;
          const int64_t x = tile * kTile;
          product_scores(chunk.count, size, k_rows, q_tiles + x * size, scores + x);
          for (int64_t j = 0; j < kTile; j += kLanes)
            softmax(group, chunk, chunk.sight[tile], x + j, scores + x + j, mixed + x * size + j, at<Floats>(high + x + j),
                    at<Floats>(total + x + j));
          product_tile(chunk.count, size, v_rows, scores + x, mixed + x * size);
        }
      }
      float* logs = log_total + (group.b * shape.heads + h) * shape.length + group.first;
      for (int64_t x = 0; x < group.count; ++x) {
        factors[x] = total[x] > 0.0f ? 1.0f / total[x] : 0.0f;
        logs[x] = total[x] > 0.0f ? high[x] + __builtin_log2f(total[x]) : 0.0f;
      }
      write_tiles(mixed, shape.query_row(), group.count, size, factors, out + here);
    }
  }

  // Turns a column of vectors of scores into weights, and shrinks what was summed before to their new scale.
  void softmax(const Group& group, const Chunk& chunk, Sight sight, int64_t x, float* scores, float* mixed, Floats& high,
               Floats& total) const {
    if (rule.cap > 0 || sight == kPart)
      for (int64_t y = 0; y < chunk.count; ++y) {
        Floats& score = at<Floats>(scores + y * kGroup);
        if (rule.cap > 0) score = tanh(score) * rule.of_tanh();
        if (sight == kPart) score = group.sees(chunk.start + y, x) ? score : Floats{} + kLowest;
      }
    Floats higher = high;
    for (int64_t y = 0; y < chunk.count; ++y) {
      const Floats score = at<Floats>(scores + y * kGroup);
      higher = score > higher ? score : higher;
    }
    const Floats shrink = exp2(high - higher);
    Floats sum = total * shrink;
    for (int64_t y = 0; y < chunk.count; ++y) {
      Floats& score = at<Floats>(scores + y * kGroup);
      // For a query that has seen no key yet, the difference to hidden ones is 0.
      const Floats weight = score == kLowest ? Floats{} : exp2(score - higher);
      sum += weight;
      score = weight;
    }
    for (int64_t k = 0; k < shape.size; ++k) at<Floats>(mixed + k * kTile) *= shrink;
    high = higher;
    total = sum;
  }
};

struct Backward {
  Shape shape;
  Rule rule;
  std::vector<Group> groups;
  const float *q, *k, *v, *out, *log_total, *d_out;
  float *d_q, *d_k, *d_v;

  int64_t items() const { return shape.batch * shape.kv_heads; }

  // The heads of one row that read one kv-head.
  void operator()(int64_t item) const {
    const int64_t b = item / shape.kv_heads, g = item % shape.kv_heads, repeat = shape.heads / shape.kv_heads;
    const int64_t size = shape.size, row = shape.query_row(), key_row = shape.key_row();
    Scratch scratch((5 * kGroup + 2 * kChunk) * size + (2 * kChunk + 3) * kGroup);
    float *q_rows = scratch.take(kGroup * size), *q_tiles = scratch.take(kGroup * size);
    float *d_out_rows = scratch.take(kGroup * size), *d_out_tiles = scratch.take(kGroup * size);
    float *d_q_tiles = scratch.take(kGroup * size), *k_rows = scratch.take(kChunk * size);
    float *v_rows = scratch.take(kChunk * size), *scores = scratch.take(kChunk * kGroup);
    float *d_weights = scratch.take(kChunk * kGroup), *logs = scratch.take(kGroup);
    float *means = scratch.take(kGroup), *factors = scratch.take(kGroup);
    std::fill(factors, factors + kGroup, rule.scale);
    for (int64_t m = 0; m < shape.width; ++m) {
      std::fill_n(d_k + shape.key(b, m, g), size, 0.0f);
      std::fill_n(d_v + shape.key(b, m, g), size, 0.0f);
    }
    const int64_t of_row = groups.size() / shape.batch;
    for (int64_t index = b * of_row; index < (b + 1) * of_row; ++index) {
      const Group& group = groups[index];
      for (int64_t h = g * repeat; h < (g + 1) * repeat; ++h) {
        const int64_t here = shape.query(b, group.first, h);
        read_vectors(q + here, row, group.count, kGroup, size, q_rows);
        read_vectors(d_out + here, row, group.count, kGroup, size, d_out_rows);
        transpose(q_rows, size, rule.of_queries(), q_tiles);
        transpose(d_out_rows, size, 1.0f, d_out_tiles);
        std::fill(d_q_tiles, d_q_tiles + kGroup * size, 0.0f);
        for (int64_t x = 0; x < kGroup; ++x) {
          // The sum over keys of weight times gradient of weight is the product of output and gradient.
          means[x] = 0.0f;
          if (x < group.count)
            for (int64_t i = 0; i < size; ++i) means[x] += out[here + x * row + i] * d_out_rows[x * size + i];
          logs[x] = x < group.count ? log_total[(b * shape.heads + h) * shape.length + group.first + x] : 0.0f;
        }
        for (const Chunk& chunk : group.chunks) {
          const int64_t from = shape.key(b, chunk.start, g);
          read_vectors(k + from, key_row, chunk.count, chunk.count, size, k_rows);
          read_vectors(v + from, key_row, chunk.count, chunk.count, size, v_rows);
          int64_t first = kGroup, end = 0;  // queries of tiles that see something
          for (int tile = 0; tile < kTiles; ++tile)
            if (chunk.sight[tile] != kNothing) first = std::min<int64_t>(first, tile * kTile), end = (tile + 1) * kTile;
          for (int64_t x = first; x < end; x += kTile) {
            const Sight sight = chunk.sight[x / kTile];
            if (sight == kNothing) {
              for (int64_t y = 0; y < chunk.count; ++y)
                for (float* array : {scores, d_weights}) std::fill_n(array + y * kGroup + x, kTile, 0.0f);
              continue;
            }
            product_scores(chunk.count, size, k_rows, q_tiles + x * size, scores + x);
            product_scores(chunk.count, size, v_rows, d_out_tiles + x * size, d_weights + x);
            for (int64_t j = x; j < x + kTile; j += kLanes)
              gradients(group, chunk, sight, j, at<Floats>(logs + j), at<Floats>(means + j), scores + j, d_weights + j);
            product_tile(chunk.count, size, k_rows, d_weights + x, d_q_tiles + x * size);
          }
          product_keys(chunk.count, end - first, size, scores + first, d_out_rows + first * size, d_v + from, key_row);
          product_keys(chunk.count, end - first, size, d_weights + first, q_rows + first * size, d_k + from, key_row);
        }
        write_tiles(d_q_tiles, row, group.count, size, factors, d_q + here);
      }
    }
    for (int64_t m = 0; m < shape.width; ++m)
      for (int64_t i = 0; i < size; ++i) d_k[shape.key(b, m, g) + i] *= rule.scale;
  }

  // Turns columns of scores into weights, and gradients of weights into gradients of products of query and key.
  void gradients(const Group& group, const Chunk& chunk, Sight sight, int64_t x, Floats log, Floats mean, float* scores,
                 float* d_weights) const {
    if (rule.cap > 0 || sight == kPart)
      for (int64_t y = 0; y < chunk.count; ++y) {
        Floats &score = at<Floats>(scores + y * kGroup), &d_score = at<Floats>(d_weights + y * kGroup);
        Floats slope = Floats{} + 1.0f;
        if (rule.cap > 0) {
          const Floats squeezed = tanh(score);
          slope = 1.0f - squeezed * squeezed;
          score = squeezed * rule.of_tanh();
        }
        score = group.sees(chunk.start + y, x) ? exp2(score - log) : Floats{};
        d_score = score * (d_score - mean) * slope;
      }
    else
      for (int64_t y = 0; y < chunk.count; ++y) {
        Floats &score = at<Floats>(scores + y * kGroup), &d_score = at<Floats>(d_weights + y * kGroup);
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
  const Shape shape = shape_of(q, k);
  const Forward work{shape,          {scale, cap},     groups_of(shape, ranges.typed_data()), q.typed_data(),
                     k.typed_data(), v.typed_data(),   out->typed_data(),                     log_total->typed_data()};
  run(work, pool, threads);
  return ffi::Error::Success();
}

ffi::Error backward(ffi::ThreadPool pool, FloatArray q, FloatArray k, FloatArray v, IntArray ranges, FloatArray out,
                    FloatArray log_total, FloatArray d_out, FloatResult d_q, FloatResult d_k, FloatResult d_v,
                    float scale, float cap, int64_t threads) {
  const Shape shape = shape_of(q, k);
  const Backward work{shape,
                      {scale, cap},
                      groups_of(shape, ranges.typed_data()),
                      q.typed_data(),
                      k.typed_data(),
                      v.typed_data(),
                      out.typed_data(),
                      log_total.typed_data(),
                      d_out.typed_data(),
                      d_q->typed_data(),
                      d_k->typed_data(),
                      d_v->typed_data()};
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
