// A second device in main memory, for tests on machines without a GPU. Its tensors are computed by the CPU's kernels, but
// they are not on the CPU, and what a GPU refuses is refused: operands and generators on two devices. A seed gives other
// numbers than on the CPU, and new memory is not zero.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>

#include <cstring>

namespace {

using at::Tensor;
using c10::DispatchKey;
using Sizes = c10::SymIntArrayRef;
constexpr auto kSecond = c10::DeviceType::PrivateUse1;
const c10::DispatchKeySet kKeys(DispatchKey::PrivateUse1);

// ---- memory and streams

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* start = bytes ? std::malloc(bytes) : nullptr;
    if (bytes) std::memset(start, 0x7f, bytes);
    return {start, start, &std::free, c10::Device(kSecond, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

Memory memory;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Device only() { return {kSecond, 0}; }
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, only()); }
  c10::DeviceType type() const override { return kSecond; }
  c10::Device exchangeDevice(c10::Device) const override { return only(); }
  c10::Device getDevice() const override { return only(); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// ---- random numbers: a function of seed and offset, as on a GPU

struct Generator final : at::CPUGeneratorImpl {
  uint64_t seed_ = c10::default_rng_seed_val, offset_ = 0;

  Generator() : at::CPUGeneratorImpl(c10::default_rng_seed_val) {
    device_ = c10::Device(kSecond, 0);
    key_set_ = kKeys;
  }
  static c10::DeviceType device_type() { return kSecond; }
  uint64_t word() const { return (seed_ ^ 0x5bd1e995u) + 0x9e3779b9u * (offset_ / 4); }
  void set_current_seed(uint64_t seed) override { seed_ = seed, offset_ = 0; }
  uint64_t current_seed() const override { return seed_; }
  void set_offset(uint64_t offset) override { offset_ = offset; }
  uint64_t get_offset() const override { return offset_; }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    auto state = at::empty({16}, at::kByte);
    auto* words = static_cast<uint64_t*>(state.data_ptr());
    words[0] = seed_, words[1] = offset_;
    return state.getIntrusivePtr();
  }
  void set_state(const c10::TensorImpl& state) override {
    TORCH_CHECK(state.numel() == 16, "RNG state is wrong size");
    auto* words = static_cast<const uint64_t*>(state.data());
    seed_ = words[0], offset_ = words[1];
  }
  Generator* clone_impl() const override {
    auto* twin = new Generator();
    twin->seed_ = seed_, twin->offset_ = offset_;
    return twin;
  }
};

at::Generator& own_generator() {
  static at::Generator one = at::make_generator<Generator>();
  return one;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return own_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<Generator>(); }
  at::Device getDeviceFromPtr(void*) const override { return Guard::only(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    at::DataPtr now = memory.allocate(bytes);
    if (storage.data()) std::memcpy(now.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.set_data_ptr_noswap(std::move(now));
    storage.set_nbytes(bytes);
  }
};

[[maybe_unused]] const bool registered = (at::RegisterPrivateUse1HooksInterface(new Hooks()), true);

// ---- operations: each is the CPU's on the same memory

bool ours(const Tensor& t) { return t.defined() && t.device().type() == kSecond; }

// The CPU's view of a tensor's memory. One without elements may be resized by a kernel, so that it has memory of its own.
Tensor seen(const Tensor& t) {
  if (!ours(t)) return t;
  auto options = t.options().device(at::kCPU).requires_grad(false);
  return t.numel() ? at::from_blob(t.data_ptr(), t.sizes(), t.strides(), options) : at::empty(t.sizes(), options);
}

Tensor moved(const Tensor& cpu) {
  Tensor t = at::detail::empty_strided_generic(cpu.sizes(), cpu.strides(), &memory, kKeys, cpu.scalar_type());
  seen(t).copy_(cpu);
  return t;
}

struct Call {
  explicit Call(const std::string& name)
      : name(name), indexes(name.find("aten::index") == 0 || name.find("index_put") != std::string::npos) {}

  Tensor in(const Tensor& t, bool index = false) {
    if (!t.defined()) return t;
    if (ours(t)) {
      pairs.emplace_back(t, seen(t));
      return pairs.back().second;
    }
    // A GPU accepts numbers, and indices, from the CPU.
    if (t.dim() > 0 && !index) stranger = c10::str(t.sizes());
    return t;
  }

  at::Generator in(at::Generator given) {
    TORCH_CHECK(given.device().type() == kSecond, "Expected a '", c10::DeviceTypeName(kSecond, true),
                "' device type for generator but found '", given.device(), "'");
    auto cpu = at::detail::createCPUGenerator();
    cpu.set_current_seed(static_cast<Generator*>(given.unsafeGetGeneratorImpl())->word());
    given.set_offset(given.get_offset() + 4);
    return cpu;
  }

  void check() const {
    TORCH_CHECK(pairs.empty() || stranger.empty(), name, ": Expected all tensors to be on the same device, but found a cpu",
                " tensor of shape ", stranger);
  }

  // Outputs that a kernel gave other memory.
  void finish() {
    for (auto& [t, cpu] : pairs) {
      if (cpu.sizes() == t.sizes() && (!cpu.numel() || cpu.data_ptr() == t.data_ptr())) continue;
      at::native::resize_(t, cpu.sizes(), std::nullopt);
      seen(t).copy_(cpu);
    }
  }

  // An output on the device: an input itself, a view of one, or new.
  Tensor out(const Tensor& cpu) {
    if (!cpu.defined() || !cpu.device().is_cpu()) return cpu;
    for (auto& [t, view] : pairs)
      if (view.is_same(cpu)) return t;
    auto* start = static_cast<char*>(cpu.numel() ? cpu.data_ptr() : nullptr);
    for (auto& [t, view] : pairs) {
      auto* low = static_cast<char*>(t.storage().data_ptr().get());
      if (start && low <= start && start < low + t.storage().nbytes())
        return at::cpu::as_strided(t, cpu.sizes(), cpu.strides(), (start - low) / cpu.element_size());
    }
    return moved(cpu);
  }

  std::string name, stranger;
  bool indexes;
  std::vector<std::pair<Tensor, Tensor>> pairs;
};

void on_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Call call(op.schema().name());
  const auto given = op.schema().arguments().size(), begin = stack->size() - given;
  for (size_t i = 0; i < given; i++) {
    auto& value = (*stack)[begin + i];
    const bool index = call.indexes && i == 1;
    if (value.isTensor()) {
      value = call.in(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(call.in(t, index));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& t : value.toOptionalTensorList())
        list.push_back(t ? std::optional<Tensor>(call.in(*t, index)) : t);
      value = list;
    } else if (value.isDevice() && value.toDevice().type() == kSecond) {
      value = c10::Device(at::kCPU);
    } else if (value.isGenerator()) {
      value = call.in(value.toGenerator());
    }
  }
  call.check();
  op.redispatchBoxed(c10::DispatchKeySet(DispatchKey::CPU), stack);
  call.finish();
  const auto made = op.schema().returns().size();
  for (size_t i = stack->size() - made; i < stack->size(); i++) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = call.out(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(call.out(t));
      value = list;
    }
  }
}

// ---- operations that a device has to define itself

using Type = std::optional<c10::ScalarType>;
using Layout = std::optional<c10::Layout>;
using Device = std::optional<c10::Device>;
using Flag = std::optional<bool>;
using Format = std::optional<c10::MemoryFormat>;

Tensor empty(c10::IntArrayRef size, Type type, Layout, Device, Flag, Format format) {
  return at::detail::empty_generic(size, &memory, kKeys, c10::dtype_or_default(type), format);
}
Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, Type type, Layout, Device, Flag) {
  return at::detail::empty_strided_generic(size, stride, &memory, kKeys, c10::dtype_or_default(type));
}
Tensor as_strided(const Tensor& t, Sizes size, Sizes stride, std::optional<c10::SymInt> offset) {
  return at::cpu::as_strided_symint(t, size, stride, offset);
}
const Tensor& resize(const Tensor& t, Sizes size, Format format) {
  return at::native::resize_(t, C10_AS_INTARRAYREF_SLOW(size), format);
}
Tensor reshape_alias(const Tensor& t, Sizes size, Sizes stride) {
  return at::native::_reshape_alias(t, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}
Tensor view(const Tensor& t, Sizes size) { return at::native::view(t, C10_AS_INTARRAYREF_SLOW(size)); }
Tensor unfold(const Tensor& t, int64_t dim, int64_t size, int64_t step) { return at::native::unfold(t, dim, size, step); }
Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  seen(to).copy_(seen(from));
  return to;
}
Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}
at::Scalar number(const Tensor& t) { return seen(t).item(); }
Tensor& set_tensor(Tensor& t, const Tensor& source) { return at::native::set_tensor_(t, source); }
Tensor& set_storage(Tensor& t, at::Storage source) { return at::native::set_(t, source); }
Tensor& set_part(Tensor& t, at::Storage source, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return at::cpu::set_(t, source, offset, size, stride);
}

Tensor convolution(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias, Sizes stride, Sizes padding,
                   Sizes dilation, bool transposed, Sizes output_padding, c10::SymInt groups) {
  at::AutoDispatchBelowAutograd below;
  Call call("convolution");
  auto b = bias ? std::optional<Tensor>(call.in(*bias)) : bias;
  auto cpu_x = call.in(x), cpu_w = call.in(w);
  call.check();
  return moved(at::convolution(cpu_x, cpu_w, b, C10_AS_INTARRAYREF_SLOW(stride), C10_AS_INTARRAYREF_SLOW(padding),
                               C10_AS_INTARRAYREF_SLOW(dilation), transposed, C10_AS_INTARRAYREF_SLOW(output_padding),
                               groups.expect_int()));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& x, const Tensor& w, Sizes stride,
                                                        Sizes padding, Sizes dilation, bool transposed,
                                                        Sizes output_padding, c10::SymInt groups, std::array<bool, 3> mask) {
  at::AutoDispatchBelowAutograd below;
  Call call("convolution_backward");
  auto cpu_grad = call.in(grad), cpu_x = call.in(x), cpu_w = call.in(w);
  call.check();
  std::vector<int64_t> bias = {transposed ? w.size(1) * groups.expect_int() : w.size(0)};
  auto [a, b, c] = at::convolution_backward(
      cpu_grad, cpu_x, cpu_w, bias, C10_AS_INTARRAYREF_SLOW(stride), C10_AS_INTARRAYREF_SLOW(padding),
      C10_AS_INTARRAYREF_SLOW(dilation), transposed, C10_AS_INTARRAYREF_SLOW(output_padding), groups.expect_int(), mask);
  auto given = [](const Tensor& t) { return t.defined() ? moved(t) : t; };
  return {given(a), given(b), given(c)};
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("resize_", resize);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("view", view);
  m.impl("unfold", unfold);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", number);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_part);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(conv1d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("generator", [] { return own_generator(); });
}
