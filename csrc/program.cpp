#include "program.h"

#include <algorithm>
#include <chrono>

#include "attention_plan.h"

namespace octavo {

Program::Program(std::shared_ptr<Pool> pool, std::shared_ptr<Inputs> inputs, const Kernels* kernels)
    : pool_(std::move(pool)), inputs_(std::move(inputs)), kernels_(kernels) {}

Program::~Program() = default;

void Program::add(std::unique_ptr<Operation> operation) {
  counters_.push_back(std::make_unique<Counter>());
  operation->claimed = &counters_.back()->value;
  on_host_ = on_host_ || operation->on_host();
  (in_tail_ ? tail_ : body_).push_back(std::move(operation));
}

void Program::begin_tail(int64_t chunk) {
  in_tail_ = true;
  chunk_ = std::max<int64_t>(chunk, 1);
}

AttentionPlan* Program::attention_plan(int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t window) {
  const AttentionShape shape{heads, kv_heads, head_dim, window};
  for (const auto& plan : plans_)
    if (plan->shape == shape) return plan.get();
  plans_.push_back(std::make_unique<AttentionPlan>(shape));
  return plans_.back().get();
}

// Each operation learns whose weights come after its own; after the last come the first, for the next step.
void Program::link() {
  const Operation* following = nullptr;
  for (int round = 0; round < 2; ++round)
    for (List* list : {&tail_, &body_})
      for (auto operation = list->rbegin(); operation != list->rend(); ++operation) {
        (*operation)->following = following;
        if ((*operation)->weights_of(0, 1) != nullptr) following = operation->get();
      }
  linked_ = true;
}

Moment Program::moment_now() const {
  Moment moment;
  moment.kernels = kernels_;
  moment.pool = pool_.get();
  moment.inputs = inputs_.get();
  moment.step = inputs_->step();
  moment.rows = moment.step.tokens;
  return moment;
}

Moment Program::chunk_of(Moment moment, int64_t first) const {
  moment.rows = std::min<int64_t>(chunk_, moment.step.samples - first);
  moment.first_sample = first;
  return moment;
}

void Program::begin(const List& list, const Moment& moment) {
  for (const auto& operation : list) {
    operation->claimed->store(0, std::memory_order_relaxed);
    operation->begin(moment);
  }
}

void Program::walk(const Stretch& stretch, const Moment& moment, int thread) {
  using Clock = std::chrono::steady_clock;
  for (auto at = stretch.begin; at != stretch.end; ++at) {
    const auto& operation = *at;
    const auto start = profiling ? Clock::now() : Clock::time_point();
    operation->run(moment, thread);
    if (!operation->on_host()) pool_->barrier(thread);
    if (profiling && thread == 0)
      measured.push_back({operation->name(), std::chrono::duration<double>(Clock::now() - start).count(),
                          operation->cost(moment)});
  }
}

// All of a list whose operations have begun.
void Program::execute(const List& list, const Moment& moment) {
  for (auto begin = list.begin(); begin != list.end();) {
    const auto cut = std::find_if(begin, list.end(), [](const auto& operation) { return operation->on_host(); });
    if (cut != begin) pool_->run([&](int thread) { walk({begin, cut}, moment, thread); });
    if (cut == list.end()) return;
    begin = cut + 1;
    walk({cut, begin}, moment, 0);
  }
}

void Program::run(int64_t* sampled) {
  const Moment whole = moment_now();
  measured.clear();
  if (whole.step.tokens == 0) return;
  if (!linked_) link();
  for (const auto& plan : plans_) plan->make(whole.step, *kernels_, pool_->threads());
  begin(body_, whole);
  const bool with_tail = sampled != nullptr && whole.step.samples > 0;
  Moment first = chunk_of(whole, 0);
  first.sampled = sampled;
  if (with_tail) begin(tail_, first);
  if (on_host_) {
    execute(body_, whole);
    if (with_tail) execute(tail_, first);
  } else {
    pool_->run([&](int thread) {
      walk({body_.begin(), body_.end()}, whole, thread);
      if (with_tail) walk({tail_.begin(), tail_.end()}, first, thread);
    });
  }
  for (int64_t at = chunk_; with_tail && at < whole.step.samples; at += chunk_) {
    Moment next = chunk_of(whole, at);
    next.sampled = sampled;
    run_tail(next);
  }
}

void Program::run_tail(const Moment& chunk) {
  begin(tail_, chunk);
  execute(tail_, chunk);
}

void Program::sample(int64_t* sampled, const uint32_t* const* allowed) {
  const Moment whole = moment_now();
  for (int64_t at = 0; at < whole.step.samples; at += chunk_) {
    Moment next = chunk_of(whole, at);
    next.sampled = sampled;
    next.allowed = allowed;
    run_tail(next);
  }
}

void Program::tail(int64_t first, int64_t count) {
  Moment moment = moment_now();
  moment.rows = count;
  moment.first_sample = first;
  measured.clear();
  run_tail(moment);
}

}  // namespace octavo
