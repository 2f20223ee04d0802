// The Python face of the native kernels: octavo.kernels.cpu._native. Addresses are plain integers; whoever passes one keeps
// its memory alive. Nothing here computes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "attention_plan.h"
#include "memory.h"
#include "operations.h"
#include "pack.h"
#include "probe.h"

namespace nb = nanobind;
using namespace octavo;

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

const Kernels* kernels_named(const std::string& isa) {
  if (const Kernels* found = isa.empty() ? best_kernels() : kernels_for(isa.c_str())) return found;
  throw std::invalid_argument("this machine cannot run instruction set '" + isa + "'");
}

std::vector<std::string> isas() {
  std::vector<std::string> found;
  for (const char* name : {"avx512", "avx2", "portable"})
    if (kernels_for(name)) found.push_back(name);
  return found;
}

// A packed matrix and its memory.
class OwnedMatrix {
 public:
  Matrix view;

  OwnedMatrix(Kind kind, int64_t n, int64_t k, int group, bool f32_scales) {
    if (n < 1 || k < 1 || (group && k % group)) throw std::invalid_argument("a matrix needs rows, columns and whole groups");
    view.n = int32_t(n);
    view.k = int32_t(k);
    view.kind = kind;
    view.group = group;
    view.f32_scales = f32_scales;
    view.tile_bytes = tile_bytes(kind, k, group, f32_scales);
    memory_ = weight_memory(size_t(nbytes()) + 64);
    view.data = memory_.get();
  }
  OwnedMatrix(const OwnedMatrix&) = delete;
  OwnedMatrix& operator=(const OwnedMatrix&) = delete;

  int64_t nbytes() const { return view.tiles() * view.tile_bytes; }
  uint8_t* memory() { return memory_.get(); }

 private:
  std::shared_ptr<uint8_t> memory_;
};

using MatrixPtr = std::shared_ptr<OwnedMatrix>;

template <class Pack>
MatrixPtr packed(Kind kind, int64_t n, int64_t k, int group, bool f32_scales, Pack pack) {
  auto matrix = std::make_shared<OwnedMatrix>(kind, n, k, group, f32_scales);
  nb::gil_scoped_release release;
  pack(matrix->memory(), matrix->view.tiles());
  return matrix;
}

Rows rows_at(Address data, int64_t k, int format) {
  Rows rows;
  rows.data = at<uint8_t>(data);
  rows.k = int32_t(k);
  rows.format = Format(format);
  rows.stride = row_bytes(rows.format, k);
  return rows;
}

// A program, what it refers to, and the sampler's rows.
class Recorded {
 public:
  std::shared_ptr<Inputs> inputs;
  std::shared_ptr<Pool> pool;
  Program program;

  Recorded(std::shared_ptr<Pool> p, std::shared_ptr<Inputs> i, const std::string& isa)
      : inputs(i), pool(p), program(p, i, kernels_named(isa)) {}
  Recorded(const Recorded&) = delete;

  void keep(MatrixPtr matrix) { matrices_.push_back(std::move(matrix)); }

  void sample(Address logits, int64_t vocab, Address floats, int64_t float_stride, Address ints, int64_t int_stride) {
    sampler_ = {at<float>(floats), float_stride, at<int64_t>(ints), int_stride};
    ints_ = at<int64_t>(ints);
    vocab_ = vocab;
    program.add(make_sample(at<float>(logits), vocab, sampler_, pool->threads()));
  }

  void run() {
    nb::gil_scoped_release release;
    program.run(nullptr);
  }

  void tail(int64_t first, int64_t count) {
    if (first < 0 || count < 1 || count > program.chunk() || first + count > inputs->step().samples)
      throw std::invalid_argument("no such samples in this step");
    nb::gil_scoped_release release;
    program.tail(first, count);
  }

  // Gather, run and, when `sampling`, sample and advance. Returns the token ids; nothing is advanced when one is -1.
  std::vector<int64_t> step(const std::vector<int32_t>& rows, const std::vector<int32_t>& counts,
                            const std::vector<int32_t>& samples, bool sampling) {
    nb::gil_scoped_release release;
    pool->wake();
    inputs->gather(rows, counts, samples);
    std::vector<int64_t> ids(sampling ? size_t(inputs->step().samples) : 0);
    program.run(sampling ? ids.data() : nullptr);
    if (sampling) advance(ids);
    return ids;
  }

  // After a step without sampling: sample and advance. `masks`: for each sample bytes, [ceil(vocab / 32)] words, or None.
  std::vector<int64_t> finish(nb::list masks) {
    std::vector<int64_t> ids(size_t(inputs->step().samples));
    std::vector<nb::bytes> held;  // alive, and with them what is pointed to
    std::vector<const uint32_t*> allowed(ids.size(), nullptr);
    if (masks.size() != ids.size()) throw std::invalid_argument("as many masks as samples");
    for (size_t i = 0; i < ids.size(); ++i) {
      if (masks[i].is_none()) continue;
      held.push_back(nb::cast<nb::bytes>(masks[i]));
      if (int64_t(held.back().size()) != (vocab_ + 31) / 32 * 4) throw std::invalid_argument("a mask of another vocabulary");
      allowed[i] = static_cast<const uint32_t*>(held.back().data());
    }
    nb::gil_scoped_release release;
    pool->wake();
    program.sample(ids.data(), allowed.data());
    advance(ids);
    return ids;
  }

 private:
  void advance(const std::vector<int64_t>& ids) {  // not when one is -1
    for (const int64_t id : ids)
      if (id < 0) return;
    for (size_t i = 0; i < ids.size(); ++i) ++ints_[inputs->sample_row(int64_t(i)) * sampler_.int_stride + 2];
    inputs->advance(ids);
  }

  std::vector<MatrixPtr> matrices_;
  SamplerRows sampler_;
  int64_t* ints_ = nullptr;
  int64_t vocab_ = 0;
};

KvPages kv_at(Address data, int kind, int32_t blocks, int32_t block_size, int32_t kv_heads, int32_t head_dim) {
  return {at<uint8_t>(data), KvKind(kind), blocks, block_size, kv_heads, head_dim};
}

std::vector<std::tuple<std::string, double, double, double>> profile(const Recorded& r) {
  std::vector<std::tuple<std::string, double, double, double>> found;
  for (const Measured& m : r.program.measured) found.emplace_back(m.name, m.seconds, m.cost.bytes, m.cost.operations);
  return found;
}

void bind_matrix(nb::module_& m) {
  nb::class_<OwnedMatrix>(m, "Matrix")
      .def_static("f32", [](Address w, int64_t n, int64_t k) {
        return packed(Kind::F32, n, k, 0, false, [&](uint8_t* out, int64_t t) { pack_f32(at<float>(w), n, k, out, 0, t); });
      })
      .def_static("bf16", [](Address w, int64_t n, int64_t k) {
        return packed(Kind::BF16, n, k, 0, false, [&](uint8_t* out, int64_t t) { pack_bf16(at<bf16>(w), n, k, out, 0, t); });
      })
      .def_static("f16", [](Address w, int64_t n, int64_t k) {
        return packed(Kind::F16, n, k, 0, false, [&](uint8_t* out, int64_t t) { pack_f16(at<f16>(w), n, k, out, 0, t); });
      })
      .def_static("int8", [](Address q, Address scales, bool f32_scales, int group, int64_t n, int64_t k) {
        return packed(Kind::INT8, n, k, group, f32_scales, [&](uint8_t* out, int64_t t) {
          pack_int8(at<int8_t>(q), at<void>(scales), f32_scales, group, n, k, out, 0, t);
        });
      })
      .def_static("int4", [](Address q, Address scales, Address minimums, bool f32_scales, int group, int64_t n, int64_t k) {
        return packed(Kind::INT4, n, k, group, f32_scales, [&](uint8_t* out, int64_t t) {
          pack_int4(at<uint8_t>(q), at<void>(scales), at<void>(minimums), f32_scales, group, n, k, out, 0, t);
        });
      })
      .def_prop_ro("n", [](const OwnedMatrix& w) { return w.view.n; })
      .def_prop_ro("k", [](const OwnedMatrix& w) { return w.view.k; })
      .def_prop_ro("kind", [](const OwnedMatrix& w) {
        static const char* const names[] = {"f32", "bf16", "int8", "int4", "f16"};
        return names[int(w.view.kind)];
      })
      .def_prop_ro("group", [](const OwnedMatrix& w) { return w.view.group; })
      .def_prop_ro("nbytes", &OwnedMatrix::nbytes)
      .def_prop_ro("format", [](const OwnedMatrix& w) { return int(w.view.format()); })
      .def("unpack", [](const OwnedMatrix& w, int64_t row0, int64_t row1, Address out) {
        if (row0 < 0 || row1 > w.view.n) throw std::out_of_range("rows outside the matrix");
        nb::gil_scoped_release release;
        for (int64_t r = row0; r < row1; ++r) unpack_row(w.view, r, at<float>(out) + (r - row0) * w.view.k);
      });
}

void bind_inputs(nb::module_& m) {
  nb::class_<Inputs>(m, "Inputs")
      .def(nb::init<int64_t, int64_t, int64_t, int32_t>(), nb::arg("max_tokens"), nb::arg("max_rows"), nb::arg("max_pages"),
           nb::arg("block_size"))
      .def("bind", [](Inputs& in, Address token_ids, int64_t token_stride, Address num_tokens, Address num_computed,
                      Address num_blocks, int64_t rows) {
        in.bind({at<int32_t>(token_ids), token_stride, at<int32_t>(num_tokens), at<int32_t>(num_computed),
                 at<int32_t>(num_blocks), rows});
      })
      .def("bind_group", [](Inputs& in, Address block_tables, int64_t table_stride, int32_t window) {
        in.bind_group(at<int32_t>(block_tables), table_stride, window);
      })
      .def("assign", [](Inputs& in, int32_t tokens, int32_t rows, int32_t samples, int32_t block_size, Address token_ids,
                        Address positions, Address slots, Address query_start, Address context_lens, Address page_start,
                        Address page_ids, Address logits_index) {
        in.assign({tokens, rows, samples, block_size, at<int64_t>(token_ids), at<int64_t>(positions), at<int64_t>(slots),
                   at<int32_t>(query_start), at<int32_t>(context_lens), at<int32_t>(page_start), at<int32_t>(page_ids),
                   at<int64_t>(logits_index), nullptr});
      })
      .def("assign_row_slots", [](Inputs& in, Address slots) { in.assign_row_slots(at<int32_t>(slots)); })
      .def("gather", &Inputs::gather)
      .def("advance", &Inputs::advance)
      .def_prop_ro("tokens", [](const Inputs& in) { return in.step().tokens; })
      .def_prop_ro("samples", [](const Inputs& in) { return in.step().samples; })
      .def_prop_ro("block_size", [](const Inputs& in) { return in.step().block_size; })
      .def_prop_ro("num_groups", &Inputs::num_groups)
      .def("arrays", [](const Inputs& in, int32_t group) {  // address and length of each of the gathered arrays
        const Step s = in.step(group);
        const auto pages = int64_t(s.rows ? s.page_start[s.rows] : 0);
        return std::vector<std::pair<Address, int64_t>>{
            {Address(s.token_ids), s.tokens}, {Address(s.positions), s.tokens}, {Address(s.slots), s.tokens},
            {Address(s.query_start), s.rows + 1}, {Address(s.context_lens), s.rows}, {Address(s.page_start), s.rows + 1},
            {Address(s.page_ids), pages}, {Address(s.logits_index), s.samples}, {Address(in.rows().data()), s.rows}};
      });
}

// inputs: (address, elements from row to row, whether one element is for all features); instructions: (function, a, b,
// target register), b as a where there is but one argument.
void add_elementwise(Recorded& r, const std::vector<std::tuple<Address, int64_t, bool>>& inputs,
                     const std::vector<float>& scalars,
                     const std::vector<std::tuple<int32_t, int32_t, int32_t, int32_t>>& instructions, int32_t result,
                     int64_t k, Address out, int format) {
  const auto num_operands = int32_t(inputs.size() + scalars.size()) + MOST_REGISTERS;
  const auto operand = [&](int32_t i) { return i >= 0 && i < num_operands; };
  bool known = inputs.size() <= MOST_INPUTS && scalars.size() <= MOST_SCALARS && operand(result);
  std::vector<ElementInput> of_inputs;
  for (const auto& [data, ld, single] : inputs) of_inputs.push_back({at<float>(data), ld, single});
  std::vector<Instruction> code;
  for (const auto& [function, a, b, target] : instructions) {
    known = known && function >= 0 && function <= int32_t(Function::SQRT) && operand(a) && operand(b) && target >= 0 &&
            target < MOST_REGISTERS;
    code.push_back({Function(function), a, b, target});
  }
  if (!known) throw std::invalid_argument("an element-wise expression that the kernels do not know");
  r.program.add(make_elementwise(std::move(of_inputs), scalars, std::move(code), result, rows_at(out, k, format)));
}

void bind_operations(nb::class_<Recorded>& c) {
  c.def("embed", [](Recorded& r, MatrixPtr table, Address ids, Address out, int64_t ld) {
     r.keep(table);
     r.program.add(make_embed({table->view, at<int64_t>(ids), at<float>(out), ld}, ids == 0));
   })
      .def("convert", [](Recorded& r, Address x, int64_t ld, int64_t k, Address out, int format) {
        r.program.add(make_convert(at<float>(x), ld, rows_at(out, k, format)));
      })
      .def("norm", [](Recorded& r, Address x, int64_t x_ld, Address add, int64_t add_ld, Address weight, float eps, int64_t k,
                      Address out, int format) {
        r.program.add(make_norm({at<float>(x), x_ld, at<float>(add), add_ld, at<float>(weight), eps, rows_at(out, k, format)}));
      })
      .def("silu_mul", [](Recorded& r, Address x, int64_t ld, int64_t k, Address out, int format) {
        r.program.add(make_silu_mul({at<float>(x), ld, rows_at(out, k, format)}));
      })
      .def("elementwise", &add_elementwise)
      .def("linear", [](Recorded& r, Address x, MatrixPtr w, Address bias, Address out, int64_t ld, bool add) {
        r.keep(w);
        r.program.add(make_linear({rows_at(x, w->view.k, int(w->view.format())), w->view, at<float>(bias), at<float>(out), ld, add}));
      })
      .def("gate_up", [](Recorded& r, Address x, MatrixPtr w, Address bias, Address out, int format) {
        if (w->view.n % 64) throw std::invalid_argument("gate_up takes halves of whole 32s");
        r.keep(w);
        r.program.add(make_gate_up({rows_at(x, w->view.k, int(w->view.format())), w->view, at<float>(bias),
                                    rows_at(out, w->view.n / 2, format)}));
      })
      .def("rope_cache", [](Recorded& r, Address q, int64_t q_ld, Address k, int64_t k_ld, Address v, int64_t v_ld, int32_t heads,
                            Address cos_sin, int32_t rotary_dim, Address q_norm, Address k_norm, float eps, Address kv, int kind,
                            int32_t blocks, int32_t block_size, int32_t kv_heads, int32_t head_dim, Address out, int64_t out_ld) {
        if (!q_norm != !k_norm) throw std::invalid_argument("norms of both q and k, or of neither");
        r.program.add(make_rope_cache({at<float>(q), at<float>(k), at<float>(v), q_ld, k_ld, v_ld, heads, at<float>(cos_sin),
                                       rotary_dim, at<float>(q_norm), at<float>(k_norm), eps,
                                       kv_at(kv, kind, blocks, block_size, kv_heads, head_dim), at<float>(out), out_ld},
                                      r.program.group()));
      })
      .def("attention", [](Recorded& r, Address q, int64_t q_ld, int32_t heads, Address kv, int kind, int32_t blocks,
                           int32_t block_size, int32_t kv_heads, int32_t head_dim, float scale, int32_t window, float soft_cap,
                           Address out, int64_t out_ld) {
        r.program.add(make_attention({at<float>(q), q_ld, heads, kv_at(kv, kind, blocks, block_size, kv_heads, head_dim), scale,
                                      window, soft_cap, at<float>(out), out_ld},
                                     r.program.attention_plan(heads, kv_heads, head_dim, window), r.program.group()));
      })
      .def("gather_rows", [](Recorded& r, Address x, int64_t ld, int64_t n, Address out, int64_t out_ld) {
        r.program.add(make_gather_rows(at<float>(x), ld, n, at<float>(out), out_ld));
      })
      .def("host", [](Recorded& r, const std::string& name, nb::callable function) {
        r.program.add(make_host("host " + name, [function](int64_t rows, int64_t tokens) {
          nb::gil_scoped_acquire python;
          function(rows, tokens);
        }));
      })
      .def("use_group", [](Recorded& r, int32_t group) { r.program.use_group(group); })
      .def("sample", &Recorded::sample)
      .def("begin_tail", [](Recorded& r, int64_t chunk) { r.program.begin_tail(chunk); });
}

void bind_recurrent(nb::class_<Recorded>& c) {
  c.def("head_norm", [](Recorded& r, Address x, int64_t x_ld, int32_t heads, int32_t head_dim, Address weight, float eps,
                        Address out, int64_t out_ld) {
     r.program.add(make_head_norm({at<float>(x), x_ld, heads, head_dim, at<float>(weight), eps, at<float>(out), out_ld}));
   })
      .def("short_conv", [](Recorded& r, Address x, int64_t ld, int32_t channels, int32_t taps, Address weight, Address state,
                            Address out, int64_t out_ld) {
        if (taps < 1 || taps > MAX_CONV_TAPS) throw std::invalid_argument("a convolution has 1 to 16 taps");
        r.program.add(make_short_conv({at<float>(x), ld, channels, taps, at<float>(weight), at<float>(state), at<float>(out),
                                       out_ld}));
      })
      .def("delta_rule", [](Recorded& r, Address q, int64_t q_ld, Address k, int64_t k_ld, Address v, int64_t v_ld, Address g,
                            int64_t g_ld, Address beta, int64_t beta_ld, int32_t k_heads, int32_t v_heads, int32_t dk, int32_t dv,
                            Address state, Address out, int64_t out_ld) {
        if (k_heads < 1 || v_heads % k_heads) throw std::invalid_argument("each head of q and k serves as many of v");
        if (dk < 1 || dk > MAX_DELTA_DIM) throw std::invalid_argument("heads of q and k have 1 to 256 features");
        r.program.add(make_delta_rule({{at<float>(q), q_ld}, {at<float>(k), k_ld}, {at<float>(v), v_ld}, {at<float>(g), g_ld},
                                       {at<float>(beta), beta_ld}, k_heads, v_heads, dk, dv, at<float>(state), at<float>(out),
                                       out_ld}));
      });
}

using Parts = std::vector<std::vector<MatrixPtr>>;  // of each expert's matrix

std::vector<std::vector<Matrix>> views(Recorded& r, const Parts& experts, int64_t n, int64_t k) {
  std::vector<std::vector<Matrix>> found;
  for (const auto& parts : experts) {
    int64_t rows = 0;
    found.emplace_back();
    for (const MatrixPtr& part : parts) {
      if (part->view.k != k) throw std::invalid_argument("experts of several widths");
      rows += part->view.n;
      found.back().push_back(part->view);
      r.keep(part);
    }
    if (rows != n) throw std::invalid_argument("experts of several heights");
  }
  return found;
}

// x: rows by format, 0 where none is taken.
void add_experts(Recorded& r, const std::vector<Address>& x, std::pair<Address, int64_t> weights, std::pair<Address, int64_t> ids,
                 int32_t k, int32_t hidden, int32_t inner, const Parts& gate_up, const Parts& down, Address scratch,
                 int64_t most_tokens, Address out, int64_t out_ld) {
  if (x.size() != 4 || gate_up.empty() || gate_up.size() != down.size() || k < 1 || most_tokens < 1)
    throw std::invalid_argument("as many matrices of gate and up as of down, and rows by format");
  ExpertsArgs args;
  args.weights = at<float>(weights.first), args.weights_ld = weights.second;
  args.ids = at<int32_t>(ids.first), args.ids_ld = ids.second;
  args.k = k, args.hidden = hidden, args.most_tokens = most_tokens;
  args.gate_up = views(r, gate_up, 2 * inner, hidden);
  args.down = views(r, down, hidden, inner);
  args.out = at<float>(out), args.out_ld = out_ld;
  for (const int f : {0, 1, 2, 3}) args.x[f] = at<uint8_t>(x[size_t(f)]);
  args.scratch = at<uint8_t>(scratch);
  args.both_ld = round_up(2 * inner, 16);
  for (const auto& parts : args.down) args.inner_stride = std::max(args.inner_stride, row_bytes(parts[0].format(), inner));
  r.program.add(make_experts(std::move(args)));
}

void bind_experts(nb::class_<Recorded>& c) {
  c.def("route", [](Recorded& r, Address logits, int64_t ld, int32_t experts, int32_t k, bool renormalize, Address weights,
                    int64_t weights_ld, Address ids, int64_t ids_ld) {
     if (k < 1 || k > experts) throw std::invalid_argument("a token takes some of the experts there are");
     r.program.add(make_route({at<float>(logits), ld, experts, k, renormalize, at<float>(weights), weights_ld, at<int32_t>(ids),
                               ids_ld}));
   }).def("experts", &add_experts);
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);
  m.def("isas", &isas);
  m.def("row_bytes", [](int format, int64_t k) { return row_bytes(Format(format), k); });
  m.def("kv_page_bytes", [](int kind, int32_t block_size, int32_t kv_heads, int32_t head_dim) {
    return kv_at(0, kind, 1, block_size, kv_heads, head_dim).page_bytes();
  });
  nb::class_<Pool>(m, "Pool").def(nb::init<int>(), nb::arg("threads")).def_prop_ro("threads", &Pool::threads);
  bind_matrix(m);
  bind_inputs(m);
  nb::class_<Recorded> program(m, "Program");
  program.def(nb::init<std::shared_ptr<Pool>, std::shared_ptr<Inputs>, const std::string&>(), nb::arg("pool"), nb::arg("inputs"),
              nb::arg("isa") = "");
  bind_operations(program);
  bind_recurrent(program);
  bind_experts(program);
  program.def_prop_ro("inputs", [](const Recorded& r) { return r.inputs; });
  program.def("run", &Recorded::run)
      .def("tail", &Recorded::tail)
      .def("step", &Recorded::step)
      .def("finish", &Recorded::finish)
      .def_prop_rw("profiling", [](const Recorded& r) { return r.program.profiling; },
                   [](Recorded& r, bool on) { r.program.profiling = on; })
      .def("profile", &profile);

  m.def("probe", [](Pool& pool, const std::string& kind, const std::string& isa) {  // per second, see probe.h
    const char* name = kernels_named(isa)->name;
    nb::gil_scoped_release release;
    return probe(pool, kind, name);
  });

  // One row or a few at a time, outside of a program: what the sampler needs beyond the tail's own sampling.
  m.def("sample_rows", [](Pool& pool, const std::string& isa, Address logits, int64_t ld, int64_t vocab,
                          const std::vector<int32_t>& rows, Address floats, int64_t float_stride, Address ints, int64_t int_stride) {
    const Kernels* kernels = kernels_named(isa);
    const SamplerRows state{at<float>(floats), float_stride, at<int64_t>(ints), int_stride};
    std::vector<int64_t> ids(rows.size());
    nb::gil_scoped_release release;
    std::vector<std::vector<uint8_t>> scratch(size_t(pool.threads()), std::vector<uint8_t>(size_t(vocab) * 12 + 64));
    std::atomic<size_t> next{0};
    pool.run([&](int thread) {
      for (size_t i; (i = next.fetch_add(1)) < rows.size();)
        ids[i] = sample_one(*kernels, at<float>(logits) + int64_t(i) * ld, vocab, state.row(rows[i]), scratch[size_t(thread)].data());
    });
    return ids;
  });
  m.def("mask", [](const std::string& isa, Address logits, int64_t vocab, Address allowed) {
    kernels_named(isa)->mask(at<float>(logits), vocab, at<uint32_t>(allowed));
  });
  m.def("penalize", [](const std::string& isa, Address logits, int64_t vocab, Address counts, Address seen, float presence,
                       float frequency, float repetition) {
    kernels_named(isa)->penalize(at<float>(logits), vocab,
                                 {at<int32_t>(counts), at<uint8_t>(seen), presence, frequency, repetition});
  });
  m.def("logprobs", [](const std::string& isa, Address logits, int64_t vocab, const std::vector<int64_t>& ids, int64_t count) {
    const Kernels* kernels = kernels_named(isa);
    std::vector<float> values(ids.size()), top(static_cast<size_t>(count));
    std::vector<int64_t> top_ids(static_cast<size_t>(count));
    nb::gil_scoped_release release;
    std::vector<uint8_t> scratch(size_t(vocab) * 12 + 64);
    kernels->logprobs(at<float>(logits), vocab, ids.data(), int64_t(ids.size()), values.data());
    kernels->top(at<float>(logits), vocab, count, top.data(), top_ids.data(), scratch.data());
    kernels->logprobs(at<float>(logits), vocab, top_ids.data(), count, top.data());
    return std::make_tuple(values, top, top_ids);
  });
}
