#include "operations.h"

#include <algorithm>
#include <cstring>

#include "attention_plan.h"
#include "share.h"

namespace octavo {

namespace {

// What a thread reads after columns [.., end) of a product of few rows: its first piece of the shared rest after its own
// share, then the weights of the operation that follows. With many rows the weights are not what is waited for.
const uint8_t* read_next(const Operation& op, const Moment& now, int thread, const Matrix& w, int64_t columns, int64_t tiles,
                         int64_t end) {
  if (now.rows >= ROW_MULTIPLE || op.following == nullptr) return nullptr;
  const int64_t threads = now.pool->threads(), own = own_share(columns, threads, FEW_GRAIN);
  if (threads > 1 && end == (thread + 1) * own && own * threads + thread * FEW_GRAIN < columns)
    return w.tile((own * threads + thread * FEW_GRAIN) * tiles);
  return op.following->weights_of(thread, int(threads));
}

const uint8_t* first_weights(const Matrix& w, int64_t columns, int64_t tiles, int thread, int threads) {
  return w.tile(threads == 1 ? 0 : thread * own_share(columns, threads, FEW_GRAIN) * tiles);
}

// Rows and columns of a product. Few rows: all of them, columns shared out. Many: blocks of rows of nearly equal size, all
// columns of one block before the next, taken by whoever is free: there every piece is long.
template <class F>
void share_product(const Operation& op, const Moment& now, int thread, int64_t columns, int64_t bytes_per_row, F f) {
  if (now.rows < ROW_MULTIPLE) {
    share(op, now, thread, columns, FEW_GRAIN, [&](int64_t begin, int64_t end) { f(0, now.rows, begin, end); });
    return;
  }
  const RowBlocks blocks = row_blocks(now.rows, bytes_per_row);
  const int64_t pieces = (columns + MANY_GRAIN - 1) / MANY_GRAIN;
  for (int64_t i; (i = op.claimed->fetch_add(1, std::memory_order_relaxed)) < blocks.count * pieces;) {
    const int64_t r0 = i / pieces * blocks.rows, c0 = i % pieces * MANY_GRAIN;
    if (r0 < now.rows) f(r0, std::min(now.rows, r0 + blocks.rows), c0, std::min(columns, c0 + MANY_GRAIN));
  }
}

double weight_bytes(const Matrix& w) { return double(w.tiles()) * double(w.tile_bytes); }

struct Embed : Operation {
  EmbedArgs args;
  bool step_ids;
  Embed(const EmbedArgs& a, bool s) : args(a), step_ids(s) {}
  const char* name() const override { return "embed"; }
  void run(const Moment& now, int thread) override {
    EmbedArgs a = args;
    if (step_ids) a.ids = now.step.token_ids;
    share(*this, now, thread, now.rows, 4, [&](int64_t r0, int64_t r1) { now.kernels->embed(a, r0, r1); });
  }
  Cost cost(const Moment& now) const override { return {now.rows * args.table.k * 4.0, 0}; }
};

struct Convert : Operation {
  const float* x;
  int64_t ld;
  Rows out;
  Convert(const float* x_, int64_t ld_, const Rows& o) : x(x_), ld(ld_), out(o) {}
  const char* name() const override { return "convert"; }
  void run(const Moment& now, int thread) override {
    share(*this, now, thread, now.rows, 4, [&](int64_t r0, int64_t r1) { now.kernels->convert(x, ld, out, r0, r1); });
  }
  Cost cost(const Moment& now) const override { return {now.rows * (out.k * 4.0 + double(out.stride)), 0}; }
};

struct Norm : Operation {
  NormArgs args;
  explicit Norm(const NormArgs& a) : args(a) {}
  const char* name() const override { return "norm"; }
  void run(const Moment& now, int thread) override {
    share(*this, now, thread, now.rows, 4, [&](int64_t r0, int64_t r1) { now.kernels->norm(args, r0, r1); });
  }
  Cost cost(const Moment& now) const override { return {now.rows * (args.out.k * 4.0 + double(args.out.stride)), 0}; }
};

struct SiluMul : Operation {
  SiluMulArgs args;
  explicit SiluMul(const SiluMulArgs& a) : args(a) {}
  const char* name() const override { return "silu_mul"; }
  void run(const Moment& now, int thread) override {
    share(*this, now, thread, now.rows, 4, [&](int64_t r0, int64_t r1) { now.kernels->silu_mul(args, r0, r1); });
  }
  Cost cost(const Moment& now) const override { return {now.rows * (args.out.k * 8.0 + double(args.out.stride)), 0}; }
};

struct Elementwise : Operation {
  std::vector<ElementInput> inputs;
  std::vector<float> scalars;
  std::vector<Instruction> instructions;
  ElementwiseArgs args;
  Elementwise(std::vector<ElementInput> i, std::vector<float> s, std::vector<Instruction> n, int32_t result, const Rows& out)
      : inputs(std::move(i)), scalars(std::move(s)), instructions(std::move(n)) {
    args = {inputs.data(), scalars.data(), instructions.data(), int32_t(inputs.size()), int32_t(scalars.size()),
            int32_t(instructions.size()), result, out};
  }
  const char* name() const override { return "elementwise"; }
  void run(const Moment& now, int thread) override {
    share(*this, now, thread, now.rows, 4, [&](int64_t r0, int64_t r1) { now.kernels->elementwise(args, r0, r1); });
  }
  Cost cost(const Moment& now) const override {
    double read = 0;
    for (const ElementInput& input : inputs) read += input.single || input.ld == 0 ? 0 : args.out.k * 4.0;
    return {now.rows * (read + double(args.out.stride)), now.rows * double(instructions.size()) * args.out.k};
  }
};

struct Linear : Operation {
  LinearArgs args;
  explicit Linear(const LinearArgs& a) : args(a) {}
  const char* name() const override { return args.add ? "linear_add" : "linear"; }
  void run(const Moment& now, int thread) override {
    const int64_t tiles = args.weight.tiles();
    LinearArgs part = args;
    share_product(*this, now, thread, tiles, args.x.stride, [&](int64_t r0, int64_t r1, int64_t t0, int64_t t1) {
      part.next = read_next(*this, now, thread, args.weight, tiles, 1, t1);
      now.kernels->linear(part, r0, r1, t0, t1);
    });
  }
  const uint8_t* weights_of(int thread, int threads) const override {
    return first_weights(args.weight, args.weight.tiles(), 1, thread, threads);
  }
  Cost cost(const Moment& now) const override {
    const double rows = double(now.rows);
    return {weight_bytes(args.weight) + rows * (double(args.x.stride) + args.weight.n * 4.0),
            2.0 * rows * args.weight.n * args.weight.k};
  }
};

struct GateUp : Operation {
  GateUpArgs args;
  explicit GateUp(const GateUpArgs& a) : args(a) {}
  const char* name() const override { return "gate_up"; }
  void run(const Moment& now, int thread) override {
    const int64_t units = args.weight.n / 2 / 32;  // of two tiles of gate and two of up
    GateUpArgs part = args;
    share_product(*this, now, thread, units, args.x.stride, [&](int64_t r0, int64_t r1, int64_t u0, int64_t u1) {
      part.next = read_next(*this, now, thread, args.weight, units, 2, u1);
      now.kernels->gate_up(part, r0, r1, u0, u1);
    });
  }
  const uint8_t* weights_of(int thread, int threads) const override {
    return first_weights(args.weight, args.weight.n / 2 / 32, 2, thread, threads);
  }
  Cost cost(const Moment& now) const override {
    const double rows = double(now.rows);
    return {weight_bytes(args.weight) + rows * double(args.x.stride + args.out.stride),
            2.0 * rows * args.weight.n * args.weight.k};
  }
};

struct RopeCache : Operation {
  RopeArgs args;
  int32_t group;
  RopeCache(const RopeArgs& a, int32_t g) : args(a), group(g) {}
  const char* name() const override { return "rope_cache"; }
  void run(const Moment& now, int thread) override {
    const Step step = now.inputs->step(group);
    share(*this, now, thread, now.rows, 4, [&](int64_t t0, int64_t t1) { now.kernels->rope_cache(args, step, t0, t1); });
  }
  Cost cost(const Moment& now) const override {
    return {now.rows * (args.heads * 8.0 + args.kv.kv_heads * 12.0) * args.kv.head_dim, 0};
  }
};

struct Attention : Operation {
  AttentionArgs args;
  AttentionPlan* plan;
  int32_t group;
  Attention(const AttentionArgs& a, AttentionPlan* p, int32_t g) : args(a), plan(p), group(g) {}
  const char* name() const override { return "attention"; }
  void run(const Moment& now, int thread) override {
    const Step step = now.inputs->step(group);
    for (int64_t i; (i = claimed->fetch_add(1, std::memory_order_relaxed)) < int64_t(plan->items.size());)
      now.kernels->attention(args, step, plan->items[size_t(i)], plan->partials.data(), plan->thread_scratch(thread));
    if (plan->merges.empty()) return;
    now.pool->barrier(thread);
    for (size_t i = size_t(thread); i < plan->merges.size(); i += size_t(now.pool->threads())) {
      const AttentionPlan::Merge& merge = plan->merges[i];
      now.kernels->attention_merge(args, plan->items[merge.item], merge.partitions, plan->partials.data());
    }
  }
  Cost cost(const Moment& now) const override {
    double keys = 0, products = 0;  // keys read, and pairs of query and key
    for (int32_t row = 0; row < now.step.rows; ++row) {
      const double n = now.step.query_start[row + 1] - now.step.query_start[row], c = now.step.context_lens[row];
      keys += c;
      products += n * (c - n) + n * (n + 1) / 2;
    }
    const double position = double(args.kv.page_bytes()) / args.kv.block_size * 2;
    return {keys * position, products * 4 * args.heads * args.kv.head_dim};
  }
};

struct GatherRows : Operation {
  const float* x;
  int64_t ld, n;
  float* out;
  int64_t out_ld;
  GatherRows(const float* x_, int64_t ld_, int64_t n_, float* o, int64_t ol) : x(x_), ld(ld_), n(n_), out(o), out_ld(ol) {}
  const char* name() const override { return "gather_rows"; }
  void run(const Moment& now, int thread) override {
    const int64_t* index = now.step.logits_index + now.first_sample;
    share(*this, now, thread, std::min<int64_t>(now.rows, now.step.samples), 4, [&](int64_t r0, int64_t r1) {
      for (int64_t r = r0; r < r1; ++r) std::memcpy(out + r * out_ld, x + index[r] * ld, size_t(n) * 4);
    });
  }
};

struct Host : Operation {
  std::string label;
  std::function<void(int64_t, int64_t)> function;
  Host(std::string l, std::function<void(int64_t, int64_t)> f) : label(std::move(l)), function(std::move(f)) {}
  const char* name() const override { return label.c_str(); }
  void run(const Moment& now, int) override { function(now.rows, now.step.tokens); }
  bool on_host() const override { return true; }
};

struct Sample : Operation {
  float* logits;
  int64_t vocab;
  SamplerRows rows;
  std::vector<std::vector<uint8_t>> scratch;  // by thread, 3 * vocab * 4 bytes
  Sample(float* l, int64_t v, const SamplerRows& r, int threads) : logits(l), vocab(v), rows(r) {
    scratch.resize(size_t(threads));
    for (auto& s : scratch) s.resize(size_t(v) * 12 + 64);
  }
  const char* name() const override { return "sample"; }
  void run(const Moment& now, int thread) override {
    if (now.sampled == nullptr) return;
    for (int64_t r; (r = claimed->fetch_add(1, std::memory_order_relaxed)) < now.rows;) {
      const int64_t sample = now.first_sample + r;
      if (now.allowed && now.allowed[sample]) now.kernels->mask(logits + r * vocab, vocab, now.allowed[sample]);
      now.sampled[sample] = sample_one(*now.kernels, logits + r * vocab, vocab, rows.row(now.inputs->sample_row(sample)),
                                       scratch[size_t(thread)].data());
    }
  }
  Cost cost(const Moment& now) const override { return {now.rows * double(vocab) * 4, 0}; }
};

}  // namespace

int64_t sample_one(const Kernels& kernels, const float* logits, int64_t vocab, const SampleRow& row, void* scratch) {
  if (row.temperature <= 0 || row.top_k == 1) return kernels.argmax(logits, vocab);
  return kernels.sample(logits, vocab, row, scratch);
}

std::unique_ptr<Operation> make_embed(const EmbedArgs& a, bool step_ids) { return std::make_unique<Embed>(a, step_ids); }
std::unique_ptr<Operation> make_convert(const float* x, int64_t ld, const Rows& out) {
  return std::make_unique<Convert>(x, ld, out);
}
std::unique_ptr<Operation> make_norm(const NormArgs& a) { return std::make_unique<Norm>(a); }
std::unique_ptr<Operation> make_silu_mul(const SiluMulArgs& a) { return std::make_unique<SiluMul>(a); }
std::unique_ptr<Operation> make_elementwise(std::vector<ElementInput> inputs, std::vector<float> scalars,
                                            std::vector<Instruction> instructions, int32_t result, const Rows& out) {
  return std::make_unique<Elementwise>(std::move(inputs), std::move(scalars), std::move(instructions), result, out);
}
std::unique_ptr<Operation> make_linear(const LinearArgs& a) { return std::make_unique<Linear>(a); }
std::unique_ptr<Operation> make_gate_up(const GateUpArgs& a) { return std::make_unique<GateUp>(a); }
std::unique_ptr<Operation> make_rope_cache(const RopeArgs& a, int32_t group) {
  return std::make_unique<RopeCache>(a, group);
}
std::unique_ptr<Operation> make_attention(const AttentionArgs& a, AttentionPlan* p, int32_t group) {
  return std::make_unique<Attention>(a, p, group);
}
std::unique_ptr<Operation> make_gather_rows(const float* x, int64_t ld, int64_t n, float* out, int64_t out_ld) {
  return std::make_unique<GatherRows>(x, ld, n, out, out_ld);
}
std::unique_ptr<Operation> make_host(std::string name, std::function<void(int64_t, int64_t)> function) {
  return std::make_unique<Host>(std::move(name), std::move(function));
}
std::unique_ptr<Operation> make_sample(float* logits, int64_t vocab, const SamplerRows& rows, int threads) {
  return std::make_unique<Sample>(logits, vocab, rows, threads);
}

}  // namespace octavo
