#include "epistle/dispatcher_info.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "dispatch/call/dispatcher_functions.hpp"
#include "dispatch/call/resolved_config.hpp"

namespace epistle {
namespace {

template <typename Value>
bool contains(const std::vector<Value>& values, Value value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

/// "layout expert_blocks is not one of its: token_major expert_major"; nothing where it is.
template <typename Value>
std::string not_among(const std::vector<Value>& values, Value value, std::string_view what) {
  if (contains(values, value)) return {};
  std::string text = fmt::format("{} {} is not one of its:", what, to_string(value));
  for (const Value known : values) text += fmt::format(" {}", to_string(known));
  return text;
}

/// What of a valid configuration is beyond `can`; empty where nothing is.
std::string beyond(const Capabilities& can, const DispatcherConfig& config, const ResolvedConfig& resolved,
                   int num_ranks) {
  for (const std::string& reason :
       {not_among(can.layouts, resolved.layout, "layout"), not_among(can.inputs, resolved.dtype, "input"),
        not_among(can.outputs, resolved.combine_dtype, "expert_output"),
        not_among(can.orders, resolved.order, "order")}) {
    if (!reason.empty()) return reason;
  }
  const bool is_static = resolved.sizing == SizingMode::kCapacity;
  if (is_static ? !can.capacity_sizing : !can.exact_sizing) {
    return fmt::format("it has no {} sizing", to_string(resolved.sizing));
  }
  if (resolved.quantises && !can.quantises) {
    return "it does not quantise rows on their way; give rows of fp8 with their scales";
  }
  if (resolved.quantises) {
    if (std::string reason = not_among(can.scale_orders, resolved.quantised.order, "Fp8Blocks::order");
        !reason.empty()) {
      return reason;
    }
  }
  if (resolved.places_experts() && !can.placement) {
    return "it places experts in contiguous blocks only; leave the placement trivial, and slots_per_rank 0";
  }
  if (can.max_ranks > 0 && num_ranks > can.max_ranks) {
    return fmt::format("it takes up to {} ranks, not {}", can.max_ranks, num_ranks);
  }
  if (can.max_top_k > 0 && config.top_k > can.max_top_k) {
    return fmt::format("it takes a top_k of up to {}, not {}", can.max_top_k, config.top_k);
  }
  if (can.max_tokens > 0 && config.max_tokens > can.max_tokens) {
    return fmt::format("it takes up to {} tokens per rank, not {}", can.max_tokens, config.max_tokens);
  }
  return {};
}

/// One line for all of the same name.
void add_section(MemoryPlan& memory, const MemorySection& section) {
  for (MemorySection& known : memory.sections) {
    if (known.name != section.name || known.kind != section.kind) continue;
    known.initial_bytes += section.initial_bytes;
    known.largest_bytes += section.largest_bytes;
    return;
  }
  memory.sections.push_back(section);
}

}  // namespace

std::int64_t MemoryPlan::initial_bytes(MemoryKind kind) const noexcept {
  std::int64_t bytes = 0;
  for (const MemorySection& section : sections) bytes += section.kind == kind ? section.initial_bytes : 0;
  return bytes;
}

std::int64_t MemoryPlan::largest_bytes(MemoryKind kind) const noexcept {
  std::int64_t bytes = 0;
  for (const MemorySection& section : sections) bytes += section.kind == kind ? section.largest_bytes : 0;
  return bytes;
}

std::vector<MemorySection> shared_memory(const BufferPlan& plan) {
  constexpr std::array<std::string_view, kNumBufferSections> kNames = {
      "control",     "records",       "received rows", "received scales", "expert outputs", "weight gradients",
      "packed rows", "packed scales", "staged rows",   "staged scales",   "dispatch lines", "combine lines"};
  const SectionBytes initial = plan.section_bytes(plan.initial_demand());
  const SectionBytes largest = plan.section_bytes(plan.max_demand());
  std::vector<MemorySection> sections;
  for (const BufferSection section : kBufferSections) {
    if (largest[section] == 0) continue;
    const std::int32_t copies = plan.section_copies(section);
    sections.push_back({.name = kNames[static_cast<std::size_t>(section)],
                        .kind = MemoryKind::kShared,
                        .initial_bytes = initial[section] * copies,
                        .largest_bytes = largest[section] * copies});
  }
  return sections;
}

Capabilities common_capabilities() {
  return {.layouts = {OutputLayout::kTokenMajor, OutputLayout::kExpertMajor, OutputLayout::kExpertBlocks},
          .inputs = {DType::kBf16, DType::kFp16, DType::kFp32, DType::kFp8E4m3, DType::kRaw},
          .scales = {ScaleFormat::kFp32, ScaleFormat::kBytes},
          .outputs = {DType::kBf16, DType::kFp16, DType::kFp32},
          .orders = {SumOrder::kHierarchical, SumOrder::kFlat, SumOrder::kDeepEpV2},
          .scale_orders = {ScaleOrder::kRows},
          .exact_sizing = true,
          .capacity_sizing = true,
          .backward = true,
          .device_token_count = true,
          .placement = true,
          .needs = {}};
}

DispatcherInfo::DispatcherInfo(std::string_view name, Device device, std::string_view summary,
                               Capabilities capabilities, const Functions& functions)
    : name_(name), device_(device), summary_(summary), capabilities_(std::move(capabilities)), functions_(&functions) {}

void check_options(const DispatcherInfo& info, const DeviceOptions& options) {
  const auto* const cuda = std::get_if<CudaOptions>(&options);
  if (cuda == nullptr) return;
  if ((cuda->allocator.allocate == nullptr) != (cuda->allocator.free == nullptr)) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("CudaOptions::allocator has no function '{}'; give it both, or neither",
                            cuda->allocator.allocate ? "free" : "allocate"));
  }
  if (cuda->row_flags && !info.capabilities().row_flags) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("dispatcher '{}' raises no flags of rows (CudaOptions::row_flags); use low_latency, or "
                            "leave the option out",
                            info.name()));
  }
  if (cuda->mover == CudaMover::kCopyEngines && !info.capabilities().copy_engines) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("dispatcher '{}' moves no rows with the copy engines (CudaOptions::mover); use direct, or "
                            "another mover",
                            info.name()));
  }
}

DispatcherConfig with_order_of(const Capabilities& can, DispatcherConfig config) {
  if (!config.order && !can.orders.empty()) config.order = can.orders.front();
  return config;
}

std::optional<std::string> DispatcherInfo::cannot_serve(const DispatcherConfig& config, int num_ranks,
                                                        int domain_size) const {
  if (num_ranks < 1) return fmt::format("{} ranks; there is at least one", num_ranks);
  if (domain_size < 0 || (domain_size > 0 && num_ranks % domain_size != 0)) {
    return fmt::format("{} ranks do not make domains of {}; give a divisor, or 0 for one domain", num_ranks,
                       domain_size);
  }
  ResolvedConfig resolved;
  try {
    resolved = resolve_config(with_order_of(capabilities_, config), num_ranks, domain_size);
  } catch (const Error& error) {
    return std::string(error.message());
  }
  if (std::string reason = beyond(capabilities_, config, resolved, num_ranks); !reason.empty()) {
    return fmt::format("dispatcher '{}' on {}: {}", name_, to_string(device_), reason);
  }
  return functions_->cannot_serve != nullptr ? functions_->cannot_serve(resolved, num_ranks) : std::nullopt;
}

MemoryPlan DispatcherInfo::memory(const DispatcherConfig& config, int num_ranks, int domain_size) const {
  return memory(config, {.num_ranks = num_ranks, .domain_size = domain_size});
}

MemoryPlan DispatcherInfo::memory(const DispatcherConfig& config, const MemoryQuery& query) const {
  const DispatcherConfig ordered = with_order_of(capabilities_, config);
  // What is no configuration at all is told as such.
  (void)resolve_config(ordered, query.num_ranks);
  if (const auto reason = cannot_serve(ordered, query.num_ranks, query.domain_size)) {
    throw Error(ErrorCode::kUnsupported, *reason);
  }
  check_options(*this, query.options);
  if (query.num_hosts < 1 || query.num_ranks % query.num_hosts != 0) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("{} ranks are not spread evenly over {} hosts; give a divisor",
                                                         query.num_ranks, query.num_hosts));
  }
  if (query.num_hosts > 1 && !capabilities_.joins_hosts) {
    throw Error(ErrorCode::kUnsupported, fmt::format("dispatcher '{}' on {} serves ranks of one host, not of {}", name_,
                                                     to_string(device_), query.num_hosts));
  }
  MemoryQuery asked = query;
  if (device_ == Device::kCuda && !std::holds_alternative<CudaOptions>(query.options)) asked.options = CudaOptions{};
  ResolvedConfig resolved = resolve_config(ordered, query.num_ranks, query.domain_size);
  resolved.spans_hosts = query.num_hosts > 1;
  MemoryPlan memory{.sections = shared_memory(functions_->plan(resolved, query.num_ranks))};
  if (functions_->own_memory != nullptr) {
    for (const MemorySection& section : functions_->own_memory(resolved, asked)) add_section(memory, section);
  }
  return memory;
}

}  // namespace epistle
