// A step recorded once: a list of operations over a fixed workspace, replayed with the sizes of the moment. All threads of
// the pool walk the list together, with a barrier between two operations; there is nothing else between two kernels.
//
// The list has a body, whose rows are the step's tokens, and a tail (after begin_tail), whose rows are its samples, a chunk
// at a time so that the logits of many samples need not be held at once. Where an operation is the host's (what has no
// kernel runs in PyTorch) the walk ends before it and begins again after it.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "inputs.h"
#include "kernels.h"
#include "pool.h"

namespace octavo {

struct AttentionPlan;  // which pieces the attention of this step is cut into; one per kind of attention in the model

// What an operation sees while it runs.
struct Moment {
  const Kernels* kernels = nullptr;
  Pool* pool = nullptr;
  const Inputs* inputs = nullptr;
  Step step;
  int64_t rows = 0;          // tokens, or the samples of this chunk
  int64_t first_sample = 0;  // of this chunk
  int64_t* sampled = nullptr;  // [step.samples] token ids; null when the caller samples
  const uint32_t* const* allowed = nullptr;  // [step.samples] masks, null for any token; null when no sample has one
};

struct Cost {  // of one execution at the moment's sizes, as far as the limits go
  double bytes = 0, operations = 0;
};

class Operation {
 public:
  virtual ~Operation() = default;
  virtual const char* name() const = 0;
  virtual void run(const Moment&, int thread) = 0;  // this thread's share
  virtual void begin(const Moment&) {}              // once, on thread 0, before the threads start
  virtual Cost cost(const Moment&) const { return {}; }
  virtual bool on_host() const { return false; }  // runs on the caller's thread alone, between two walks
  // Where a thread will begin to read this operation's weights; null when it has none.
  virtual const uint8_t* weights_of(int /*thread*/, int /*threads*/) const { return nullptr; }
  std::atomic<int64_t>* claimed = nullptr;  // next item of the shared rest (see share() in operations.cpp)
  const Operation* following = nullptr;     // the next one that has weights, to fetch them early
};

struct Measured {
  std::string name;
  double seconds;
  Cost cost;
};

class Program {
 public:
  Program(std::shared_ptr<Pool> pool, std::shared_ptr<Inputs> inputs, const Kernels* kernels);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void add(std::unique_ptr<Operation> operation);
  void begin_tail(int64_t chunk);  // what is added from here on runs over at most `chunk` samples at a time
  void use_group(int32_t group) { group_ = group; }  // whose blocks are looked at by what is added from here on
  int32_t group() const { return group_; }
  AttentionPlan* attention_plan(int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t window);

  // Body and, when `sampled` is there, tail. `sampled` [samples] receives the tail's token ids.
  void run(int64_t* sampled);
  // The tail over all samples of the step run last; each takes a token that its mask allows, as Moment has them.
  void sample(int64_t* sampled, const uint32_t* const* allowed);
  // The tail alone, for samples [first, first + count), count <= chunk, of the step run last.
  void tail(int64_t first, int64_t count);

  int64_t chunk() const { return chunk_; }
  const Inputs& inputs() const { return *inputs_; }
  const Kernels& kernels() const { return *kernels_; }
  Pool& pool() { return *pool_; }

  bool profiling = false;
  std::vector<Measured> measured;  // of the last run, when profiling

 private:
  using List = std::vector<std::unique_ptr<Operation>>;
  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };
  void link();
  void begin(const List& list, const Moment& moment);
  struct Stretch {  // of a list, without an operation of the host
    List::const_iterator begin, end;
  };
  void walk(const Stretch& stretch, const Moment& moment, int thread);
  void execute(const List& list, const Moment& moment);
  Moment moment_now() const;
  Moment chunk_of(Moment moment, int64_t first) const;
  void run_tail(const Moment& chunk);

  std::shared_ptr<Pool> pool_;
  std::shared_ptr<Inputs> inputs_;
  const Kernels* kernels_;
  List body_, tail_;
  bool in_tail_ = false, linked_ = false, on_host_ = false;
  int64_t chunk_ = 1;
  int32_t group_ = 0;
  std::vector<std::unique_ptr<Counter>> counters_;
  std::vector<std::unique_ptr<AttentionPlan>> plans_;
};

}  // namespace octavo
