// A mixture of experts: which experts a token takes (route), and their products over the tokens that took them.
//
// Tokens are taken in rounds, so that what lies between the products has a bound. In a round the choices (token, one of its
// experts) are ordered by expert; the rows of an expert then lie one after the other, and each of its matrices is read once
// for all of them. Experts that nobody chose are never touched. Every thread walks through the phases of a round with a
// barrier between two; products are shared out in pieces over all experts, so that one with many tokens holds up nobody.
// A token's result is the sum over its choices in their order, whoever else is in the step: the same bits in any company.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "operations.h"
#include "share.h"

namespace octavo {

namespace {

constexpr int64_t ROWS_GRAIN = 4;

struct Route : Operation {
  RouteArgs args;
  explicit Route(const RouteArgs& a) : args(a) {}
  const char* name() const override { return "route"; }

  void run(const Moment& now, int) override {
    std::vector<float> shares(size_t(args.experts));
    for (int64_t r; (r = claimed->fetch_add(ROWS_GRAIN, std::memory_order_relaxed)) < now.rows;)
      for (int64_t row = r; row < std::min(now.rows, r + ROWS_GRAIN); ++row) route(row, shares.data());
  }

  // The largest shares of the softmax, of equal ones the first. A chosen one is -1 from then on; where none is a number the
  // first that are left are taken.
  void route(int64_t row, float* shares) const {
    const float* const logits = args.logits + row * args.logits_ld;
    float top = -std::numeric_limits<float>::infinity(), sum = 0;
    for (int32_t e = 0; e < args.experts; ++e) top = std::max(top, logits[e]);
    for (int32_t e = 0; e < args.experts; ++e) sum += shares[e] = std::exp(logits[e] - top);
    float* const weights = args.weights + row * args.weights_ld;
    int32_t* const ids = args.ids + row * args.ids_ld;
    float chosen = 0;
    for (int32_t j = 0; j < args.k; ++j) {
      int32_t best = -1;
      for (int32_t e = 0; e < args.experts; ++e)
        if (shares[e] != -1 && (best < 0 || shares[e] > shares[best])) best = e;
      weights[j] = shares[best] / sum;
      chosen += weights[j];
      ids[j] = best;
      shares[best] = -1;
    }
    if (args.renormalize)
      for (int32_t j = 0; j < args.k; ++j) weights[j] /= chosen;
  }

  Cost cost(const Moment& now) const override { return {now.rows * args.experts * 4.0, 0}; }
};

struct Experts : Operation {
  ExpertsArgs args;
  std::vector<int32_t> start, order, place, active;  // [experts + 1], [choices] choice by place and place by choice
  std::atomic<int64_t> next[2];                      // pieces of the two products
  // Of this round, by place.
  uint8_t* rows[4] = {};  // of x, by format
  float *both = nullptr, *outs = nullptr;
  uint8_t* inners = nullptr;

  explicit Experts(ExpertsArgs a) : args(std::move(a)) {}
  const char* name() const override { return "experts"; }

  void run(const Moment& now, int thread) override {
    for (int64_t first = 0; first < now.rows; first += args.most_tokens) {
      const int64_t tokens = std::min(args.most_tokens, now.rows - first), choices = tokens * args.k;
      if (thread == 0) sort(first, tokens);
      now.pool->barrier(thread);
      share(now, thread, choices, [&](int32_t p) { fetch(first, p); });
      now.pool->barrier(thread);
      products(now, args.gate_up, next[0], both, args.both_ld, [&](const Matrix& w, int64_t p) { return gathered(w.format(), p); });
      now.pool->barrier(thread);
      share(now, thread, choices, [&](int32_t p) { gate(now, p); });
      now.pool->barrier(thread);
      products(now, args.down, next[1], outs, args.out_ld, [&](const Matrix& w, int64_t p) { return inner(w, p); });
      now.pool->barrier(thread);
      share(now, thread, tokens, [&](int32_t t) { add_up(first, t); });
      if (first + args.most_tokens < now.rows) now.pool->barrier(thread);
    }
  }

  // f(i) for this thread's part of [0, items).
  template <class F>
  static void share(const Moment& now, int thread, int64_t items, F f) {
    const int64_t threads = now.pool->threads();
    for (int64_t i = items * thread / threads; i < items * (thread + 1) / threads; ++i) f(int32_t(i));
  }

  int32_t expert_of(int64_t first, int64_t choice) const {
    const int32_t found = args.ids[(first + choice / args.k) * args.ids_ld + choice % args.k];
    return std::min(std::max(found, 0), int32_t(args.gate_up.size()) - 1);
  }

  void sort(int64_t first, int64_t tokens) {
    const int64_t choices = tokens * args.k, experts = int64_t(args.gate_up.size());
    uint8_t* at_byte = args.scratch;
    const auto room = [&](int64_t bytes) {
      uint8_t* const begin = at_byte;
      at_byte += bytes * choices;
      return begin;
    };
    for (const int f : {0, 1, 2, 3})
      if (args.x[f]) rows[f] = room(row_bytes(Format(f), args.hidden));
    both = reinterpret_cast<float*>(room(args.both_ld * 4));
    inners = room(args.inner_stride);
    outs = reinterpret_cast<float*>(room(args.out_ld * 4));
    start.assign(size_t(experts) + 1, 0);
    order.resize(size_t(choices));
    place.resize(size_t(choices));
    for (int64_t c = 0; c < choices; ++c) ++start[size_t(expert_of(first, c)) + 1];
    active.clear();
    for (int64_t e = 0; e < experts; ++e) {
      if (start[size_t(e) + 1]) active.push_back(int32_t(e));
      start[size_t(e) + 1] += start[size_t(e)];
    }
    std::vector<int32_t> at(start.begin(), start.end() - 1);
    for (int64_t c = 0; c < choices; ++c) {
      const int32_t p = at[size_t(expert_of(first, c))]++;
      order[size_t(p)] = int32_t(c);
      place[size_t(c)] = p;
    }
    for (auto& counter : next) counter.store(0, std::memory_order_relaxed);
  }

  Rows gathered(Format f, int64_t p) const {
    Rows found;
    found.format = f;
    found.k = args.hidden;
    found.stride = row_bytes(f, args.hidden);
    found.data = rows[int(f)] + p * found.stride;
    return found;
  }

  Rows inner(const Matrix& down, int64_t p) const {  // places lie as far apart as the widest format needs
    Rows found;
    found.format = down.format();
    found.k = down.k;
    found.stride = args.inner_stride;
    found.data = inners + p * args.inner_stride;
    return found;
  }

  void fetch(int64_t first, int64_t p) {
    const int64_t choice = order[size_t(p)], token = first + choice / args.k;
    for (const Matrix& part : args.gate_up[size_t(expert_of(first, choice))]) {
      const Rows to = gathered(part.format(), p);
      std::memcpy(to.data, args.x[int(to.format)] + token * to.stride, size_t(to.stride));
    }
  }

  void gate(const Moment& now, int64_t p) {
    const auto expert = std::upper_bound(start.begin(), start.end(), int32_t(p)) - start.begin() - 1;
    now.kernels->silu_mul({both + p * args.both_ld, args.both_ld, inner(args.down[size_t(expert)].front(), p)}, 0, 1);
  }

  void add_up(int64_t first, int64_t t) {
    float* const out = args.out + (first + t) * args.out_ld;
    const float* const weights = args.weights + (first + t) * args.weights_ld;
    for (int32_t j = 0; j < args.k; ++j) {
      const float* const found = outs + place[size_t(t * args.k + j)] * args.out_ld;
      const float weight = weights[j];
      if (j == 0)
        for (int32_t i = 0; i < args.hidden; ++i) out[i] = weight * found[i];
      else
        for (int32_t i = 0; i < args.hidden; ++i) out[i] += weight * found[i];
    }
  }

  // The matrices of the active experts over their rows, piece by piece: a block of rows and a few tiles.
  template <class F>
  void products(const Moment& now, const std::vector<std::vector<Matrix>>& matrices, std::atomic<int64_t>& counter, float* out,
                int64_t ld, F rows_of) {
    int64_t piece = counter.fetch_add(1, std::memory_order_relaxed), before = 0;
    for (const int32_t expert : active) {
      const int64_t p = start[size_t(expert)], rows = start[size_t(expert) + 1] - p;
      int64_t column = 0;
      for (const Matrix& w : matrices[size_t(expert)]) {
        const Rows x = rows_of(w, p);
        const RowBlocks blocks = row_blocks(rows, x.stride);
        const int64_t grain = rows < ROW_MULTIPLE ? FEW_GRAIN : MANY_GRAIN, pieces = (w.tiles() + grain - 1) / grain;
        for (; piece < before + blocks.count * pieces; piece = counter.fetch_add(1, std::memory_order_relaxed)) {
          const int64_t i = piece - before, r0 = i / pieces * blocks.rows, t0 = i % pieces * grain;
          if (r0 >= rows) continue;
          LinearArgs part;
          part.x = x;
          part.weight = w;
          part.out = out + p * ld + column;
          part.ld = ld;
          now.kernels->linear(part, r0, std::min(rows, r0 + blocks.rows), t0, std::min(w.tiles(), t0 + grain));
        }
        before += blocks.count * pieces;
        column += w.n;
      }
    }
  }

  Cost cost(const Moment& now) const override {  // as many experts as the last round had, in each
    double bytes = 0, multiplied = 0;
    for (const auto* matrices : {&args.gate_up, &args.down}) {
      for (const int32_t expert : active)
        for (const Matrix& w : (*matrices)[size_t(expert)]) bytes += double(w.tiles()) * double(w.tile_bytes);
      for (const Matrix& w : matrices->front()) multiplied += 2.0 * w.n * w.k;
    }
    return {bytes, now.rows * args.k * multiplied};
  }
};

}  // namespace

std::unique_ptr<Operation> make_route(const RouteArgs& a) { return std::make_unique<Route>(a); }
std::unique_ptr<Operation> make_experts(ExpertsArgs a) { return std::make_unique<Experts>(std::move(a)); }

}  // namespace octavo
