// Operations of layers whose rows have a state of fixed size. Work is shared out by parts of a row's state, which are
// independent of each other; the rows of a step are spread over the threads, so that a long one is shared by all.
#include "operations.h"
#include "share.h"

namespace octavo {

namespace {

// f(row, part) for each part of each row.
template <class F>
void share_parts(const Operation& op, const Moment& now, int thread, int64_t parts, F f) {
  const int64_t rows = now.step.rows;
  share(op, now, thread, rows * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(int32_t(i % rows), int32_t(i / rows));
  });
}

struct HeadNorm : Operation {
  HeadNormArgs args;
  explicit HeadNorm(const HeadNormArgs& a) : args(a) {}
  const char* name() const override { return "head_norm"; }
  void run(const Moment& now, int thread) override {
    share(*this, now, thread, now.rows, 4, [&](int64_t r0, int64_t r1) { now.kernels->head_norm(args, r0, r1); });
  }
  Cost cost(const Moment& now) const override { return {now.rows * args.heads * args.head_dim * 8.0, 0}; }
};

struct ShortConv : Operation {
  ShortConvArgs args;
  explicit ShortConv(const ShortConvArgs& a) : args(a) {}
  const char* name() const override { return "short_conv"; }
  void run(const Moment& now, int thread) override {
    const int64_t parts = (args.channels + CONV_CHANNELS - 1) / CONV_CHANNELS;
    share_parts(*this, now, thread, parts, [&](int32_t row, int32_t part) {
      const int64_t c0 = int64_t{part} * CONV_CHANNELS;
      now.kernels->short_conv(args, now.step, row, c0, std::min<int64_t>(args.channels, c0 + CONV_CHANNELS));
    });
  }
  Cost cost(const Moment& now) const override {
    const double states = now.step.rows * 2.0 * (args.taps - 1);
    return {(now.rows * 2.0 + states) * args.channels * 4, 2.0 * now.rows * args.channels * args.taps};
  }
};

struct DeltaRule : Operation {
  DeltaRuleArgs args;
  explicit DeltaRule(const DeltaRuleArgs& a) : args(a) {}
  const char* name() const override { return "delta_rule"; }
  void run(const Moment& now, int thread) override {
    const int64_t blocks = (args.dv + DELTA_COLUMNS - 1) / DELTA_COLUMNS;
    share_parts(*this, now, thread, args.v_heads * blocks, [&](int32_t row, int32_t part) {
      now.kernels->delta_rule(args, now.step, row, int32_t(part / blocks), int32_t(part % blocks));
    });
  }
  Cost cost(const Moment& now) const override {
    const double state = double(args.v_heads) * args.dk * args.dv;
    const double rows = args.k_heads * args.dk * 8.0 + args.v_heads * args.dv * 8.0;
    return {now.step.rows * state * 8 + now.rows * rows, now.rows * state * 7};
  }
};

}  // namespace

std::unique_ptr<Operation> make_head_norm(const HeadNormArgs& a) { return std::make_unique<HeadNorm>(a); }
std::unique_ptr<Operation> make_short_conv(const ShortConvArgs& a) { return std::make_unique<ShortConv>(a); }
std::unique_ptr<Operation> make_delta_rule(const DeltaRuleArgs& a) { return std::make_unique<DeltaRule>(a); }

}  // namespace octavo
