#include "dispatch/call/resolved_config.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <vector>

#include <fmt/format.h>

#include "core/reject.hpp"
#include "dispatch/call/placed_experts.hpp"

namespace epistle {
namespace {

constexpr std::int32_t kMaxAlignment = 1024;
constexpr std::int32_t kMaxBuffers = 8;
constexpr std::int32_t kMaxHandles = 4096;
// Far beyond any model; keep every product of sizes within 64 bits.
constexpr std::int64_t kMaxHidden = std::int64_t{1} << 24;
constexpr std::int64_t kMaxTokens = std::int64_t{1} << 28;
constexpr std::int32_t kMaxExperts = std::int32_t{1} << 20;

// Bytes of scales that belong to a row: as much as the widest row itself.
constexpr std::int64_t kMaxRawScaleBytes = kMaxHidden * static_cast<std::int64_t>(sizeof(float));

/// The values of an enumeration are those up to `last`.
template <typename Enum>
void check_enum(Enum value, Enum last, std::string_view field) {
  const auto number = static_cast<std::int64_t>(value);
  if (number < 0 || number > static_cast<std::int64_t>(last)) {
    reject(fmt::format("{} has the value {}; it goes from 0 to {}", field, number, static_cast<std::int64_t>(last)));
  }
}

void check_enums(const DispatcherConfig& config) {
  check_enum(config.input, DType::kRaw, "input");
  if (config.expert_output) check_enum(*config.expert_output, DType::kRaw, "expert_output");
  check_enum(config.overflow, OverflowPolicy::kDrop, "overflow");
  if (config.order) check_enum(*config.order, SumOrder::kDomains, "order");
}

void check_row_bytes(std::int64_t elements, DType dtype, std::string_view field) {
  if (elements <= 0 || elements > kMaxHidden) {
    reject(fmt::format("{} is {}; it must be between 1 and {}", field, elements, kMaxHidden));
  }
  const std::int64_t row_bytes = elements * dtype_bytes(dtype);
  if (row_bytes % kRowAlignmentBytes != 0) {
    const std::int64_t step = kRowAlignmentBytes / dtype_bytes(dtype);
    reject(fmt::format("a row of {} = {} {} elements has {} bytes; it must be a multiple of {} bytes: pad {} to {}",
                       field, elements, to_string(dtype), row_bytes, kRowAlignmentBytes, field,
                       (elements + step - 1) / step * step));
  }
}

bool can_be_summed(DType dtype) { return dtype == DType::kBf16 || dtype == DType::kFp16 || dtype == DType::kFp32; }

void check_range(std::int64_t value, std::int64_t low, std::int64_t high, std::string_view field) {
  if (value < low || value > high)
    reject(fmt::format("{} is {}; it must be between {} and {}", field, value, low, high));
}

void check_ranges(const ResolvedConfig& config, int num_ranks) {
  if (config.top_k < 1 || config.top_k > config.num_experts) {
    reject(fmt::format("top_k is {}; it must be between 1 and num_experts = {}", config.top_k, config.num_experts));
  }
  check_range(config.max_tokens, 0, kMaxTokens, "max_tokens");
  check_range(config.alignment, 1, kMaxAlignment, "alignment");
  check_range(config.num_buffers, 1, kMaxBuffers, "num_buffers");
  check_range(config.max_handles, 1, kMaxHandles, "max_handles");
  if (config.raw_scale_bytes < 0 || config.raw_scale_bytes > kMaxRawScaleBytes ||
      (config.raw_scale_bytes > 0 && config.dtype != DType::kRaw)) {
    reject(fmt::format("raw_scale_bytes is {} with input {}; it takes 0 to {} bytes, and only with input raw",
                       config.raw_scale_bytes, to_string(config.dtype), kMaxRawScaleBytes));
  }
  constexpr std::int64_t kMaxRows = std::numeric_limits<std::int32_t>::max();
  const bool is_blocks = config.layout == OutputLayout::kExpertBlocks;
  if (is_blocks || config.sizing == SizingMode::kCapacity) {
    check_range(config.capacity_rows, 1, kMaxRows,
                is_blocks ? "ExpertBlocks::rows_per_expert" : "Capacity::rows_per_rank");
  }
  const std::int64_t max_assignments =
      config.max_tokens * static_cast<std::int64_t>(num_ranks) * static_cast<std::int64_t>(config.top_k);
  const std::int64_t num_columns = config.num_columns(num_ranks);
  const std::int64_t capacity_blocks = is_blocks ? num_columns : 1;
  const std::int64_t max_rows =
      std::max(max_assignments, config.capacity_rows * capacity_blocks) + num_columns * config.alignment;
  if (max_rows > kMaxRows) {
    reject(fmt::format(
        "max_tokens {} x {} ranks x top_k {} (or a capacity of {} rows x {}) makes {} rows; row numbers "
        "end at {}: use fewer tokens per call",
        config.max_tokens, num_ranks, config.top_k, config.capacity_rows, capacity_blocks, max_rows, kMaxRows));
  }
}

void choose_layout(const Layout& layout, ResolvedConfig& resolved) {
  if (const auto* major = std::get_if<ExpertMajor>(&layout)) {
    resolved.layout = OutputLayout::kExpertMajor;
    resolved.alignment = major->alignment;
  } else if (const auto* blocks = std::get_if<ExpertBlocks>(&layout)) {
    resolved.layout = OutputLayout::kExpertBlocks;
    resolved.capacity_rows = blocks->rows_per_expert;
  } else {
    resolved.layout = OutputLayout::kTokenMajor;
  }
}

void choose_sizing(const Sizing& sizing, ResolvedConfig& resolved) {
  const auto* capacity = std::get_if<Capacity>(&sizing);
  resolved.sizing = capacity != nullptr ? SizingMode::kCapacity : SizingMode::kExact;
  if (capacity == nullptr) return;
  if (resolved.layout != OutputLayout::kExpertBlocks) {
    resolved.capacity_rows = capacity->rows_per_rank;
  } else if (capacity->rows_per_rank != 0) {
    reject(fmt::format("Capacity::rows_per_rank is {} with ExpertBlocks, which say their size themselves; leave it 0",
                       capacity->rows_per_rank));
  }
}

void choose_wire(const DispatcherConfig& config, ResolvedConfig& resolved) {
  const auto* quantised = std::get_if<Fp8Blocks>(&config.wire);
  resolved.quantises = quantised != nullptr;
  if (quantised == nullptr) return;
  check_enum(quantised->scales, ScaleFormat::kBytes, "Fp8Blocks::scales");
  check_enum(quantised->order, ScaleOrder::kColumns, "Fp8Blocks::order");
  if (quantised->scales != ScaleFormat::kFp32 && quantised->scales != ScaleFormat::kUe8m0) {
    reject(fmt::format("Fp8Blocks::scales is {}; it is fp32 or ue8m0", to_string(quantised->scales)));
  }
  if (config.input != DType::kBf16) {
    throw Error(
        ErrorCode::kUnsupported,
        fmt::format("a wire of Fp8Blocks quantises rows of bf16, but input is {}; give rows of bf16, or leave the "
                    "wire AsGiven",
                    to_string(config.input)));
  }
  resolved.quantised = *quantised;
  if (quantised->scales == ScaleFormat::kUe8m0) resolved.quantised.powers_of_two = true;
}

/// The types of rows: what comes in, travels, and comes back.
void choose_types(const DispatcherConfig& config, ResolvedConfig& resolved) {
  resolved.dtype = config.input;
  resolved.hidden = config.hidden;
  resolved.raw_scale_bytes = config.raw_scale_bytes;
  check_row_bytes(config.hidden, config.input, "hidden");
  choose_wire(config, resolved);
  resolved.combine_dtype = config.expert_output.value_or(can_be_summed(config.input) ? config.input : DType::kBf16);
  if (!can_be_summed(resolved.combine_dtype)) {
    throw Error(ErrorCode::kUnsupported, fmt::format("expert_output {} cannot be summed; use bf16, fp16 or fp32",
                                                     to_string(resolved.combine_dtype)));
  }
  // A raw payload without expert_output_hidden is only ever dispatched.
  const bool only_dispatches = config.input == DType::kRaw && !config.expert_output_hidden;
  resolved.combine_hidden = only_dispatches ? 0 : config.expert_output_hidden.value_or(config.hidden);
  if (!only_dispatches) check_row_bytes(resolved.combine_hidden, resolved.combine_dtype, "expert_output_hidden");
}

/// The placement, and the slots that it and later ones may take.
void choose_placement(const DispatcherConfig& config, int num_ranks, ResolvedConfig& resolved) {
  check_range(config.slots_per_rank, 0, kMaxExperts / num_ranks, "slots_per_rank");
  resolved.placement = config.placement;
  resolved.slots_per_rank = config.slots_per_rank;
  if (config.placement.is_trivial()) {
    if (config.slots_per_rank == 0) return;
    resolved.placement = blocks_of_experts(config.num_experts, num_ranks);
  } else if (config.slots_per_rank == 0) {
    check_range(config.placement.max_slots_per_rank(), 1, kMaxExperts / num_ranks, "the placement's slots of a rank");
    resolved.slots_per_rank = config.placement.max_slots_per_rank();
  }
  if (const Complaint complaint = misfit(resolved.placement, resolved, num_ranks)) throw Error(*complaint);
}

/// The fields that must agree, by name.
using Field = std::pair<std::string_view, std::int64_t>;
constexpr std::size_t kNumFields = 27;
constexpr std::string_view kPlacementField = "placement";
constexpr std::size_t kNameField = 0;  ///< holds a hash; the name itself is sent as text

std::array<Field, kNumFields> fields_of(const ResolvedConfig& config, const DispatcherName& dispatcher) {
  std::uint64_t name_code = 0;
  for (const char c : dispatcher.name) name_code = name_code * 31 + static_cast<unsigned char>(c);
  const auto code = [](auto value) { return static_cast<std::int64_t>(value); };
  return {{{"dispatcher", code(name_code)},
           {"device", code(dispatcher.device)},
           {"hidden", config.hidden},
           {"input", code(config.dtype)},
           {"raw_scale_bytes", config.raw_scale_bytes},
           {"wire", code(config.quantises)},
           {"Fp8Blocks::scales", code(config.quantised.scales)},
           {"Fp8Blocks::powers_of_two", code(config.quantised.powers_of_two)},
           {"Fp8Blocks::order", code(config.quantised.order)},
           {"num_experts", config.num_experts},
           {"top_k", config.top_k},
           {"max_tokens", config.max_tokens},
           {"layout", code(config.layout)},
           {"alignment", config.alignment},
           {"sizing", code(config.sizing)},
           {"capacity rows", config.capacity_rows},
           {"overflow", code(config.overflow)},
           {"order", code(config.order)},
           {"apply_weights", code(config.apply_weights)},
           {"zero_padding", code(config.zero_padding)},
           {"expert_output", code(config.combine_dtype)},
           {"expert_output_hidden", config.combine_hidden},
           {"num_buffers", config.num_buffers},
           {"max_handles", config.max_handles},
           {"slots_per_rank", config.slots_per_rank},
           {"the placement's generation", code(config.placement.generation())},
           {kPlacementField, code(fingerprint(config.placement))}}};
}

/// A field's value as its user writes it.
std::string value_text(std::string_view field, std::int64_t value) {
  if (field == "input" || field == "expert_output") return std::string(to_string(static_cast<DType>(value)));
  if (field == "device") return std::string(to_string(static_cast<Device>(value)));
  if (field == "layout") return std::string(to_string(static_cast<OutputLayout>(value)));
  if (field == "sizing") return std::string(to_string(static_cast<SizingMode>(value)));
  if (field == "overflow") return std::string(to_string(static_cast<OverflowPolicy>(value)));
  if (field == "order") return std::string(to_string(static_cast<SumOrder>(value)));
  if (field == "wire") return value != 0 ? "Fp8Blocks" : "AsGiven";
  if (field == "Fp8Blocks::scales") return std::string(to_string(static_cast<ScaleFormat>(value)));
  if (field == "Fp8Blocks::order") return std::string(to_string(static_cast<ScaleOrder>(value)));
  if (field == "apply_weights" || field == "zero_padding" || field == "Fp8Blocks::powers_of_two") {
    return value != 0 ? "true" : "false";
  }
  if (field == kPlacementField) return fmt::format("one of hash {:016x}", static_cast<std::uint64_t>(value));
  return std::to_string(value);
}

constexpr std::size_t kMaxNameBytes = 64;

/// What every rank tells the others when a dispatcher is created.
struct ConfigPost {
  std::array<std::int64_t, kNumFields> values;
  std::array<char, kMaxNameBytes> name;  ///< the dispatcher's
};

}  // namespace

ResolvedConfig resolve_config(const DispatcherConfig& config, int num_ranks, int domain_size) {
  check_enums(config);
  ResolvedConfig resolved;
  choose_types(config, resolved);
  choose_layout(config.layout, resolved);
  choose_sizing(config.sizing, resolved);
  resolved.num_experts = config.num_experts;
  resolved.top_k = config.top_k;
  resolved.max_tokens = config.max_tokens;
  resolved.overflow = config.overflow;
  resolved.order = config.order.value_or(SumOrder::kHierarchical);
  resolved.domain_size = domain_size < num_ranks ? domain_size : 0;
  resolved.apply_weights = config.apply_weights;
  resolved.zero_padding = config.zero_padding;
  resolved.num_buffers = config.num_buffers;
  resolved.max_handles = config.max_handles;
  check_range(config.num_experts, 1, kMaxExperts, "num_experts");
  choose_placement(config, num_ranks, resolved);
  check_ranges(resolved, num_ranks);
  return resolved;
}

LayoutParams to_layout_params(const ResolvedConfig& resolved, int num_ranks) {
  LayoutParams params;
  params.num_ranks = num_ranks;
  params.domain_size = resolved.ranks_of_domain(num_ranks);
  params.spans_hosts = resolved.spans_hosts;
  params.num_experts = resolved.num_columns(num_ranks);
  params.top_k = resolved.top_k;
  params.max_tokens = resolved.max_tokens;
  params.row_bytes = resolved.hidden * dtype_bytes(resolved.wire_dtype());
  params.scale_bytes = resolved.wire_dtype() == DType::kFp8E4m3
                           ? fp8::scale_row_bytes(resolved.hidden, resolved.scale_format())
                           : resolved.raw_scale_bytes;
  params.scale_order = resolved.quantised.order;
  params.quantises = resolved.quantises;
  params.powers_of_two = resolved.quantised.powers_of_two;
  params.scale_format = resolved.scale_format();
  params.combine_row_bytes = resolved.combine_hidden * dtype_bytes(resolved.combine_dtype);
  params.layout = resolved.layout;
  params.alignment = resolved.alignment;
  params.sizing = resolved.sizing;
  params.capacity_rows = resolved.capacity_rows;
  params.order = resolved.order;
  params.num_buffers = resolved.num_buffers;
  return params;
}

void agree_on_config(GroupImpl& group, const ResolvedConfig& config, const DispatcherName& name,
                     const Complaint& complaint) {
  const auto own_fields = fields_of(config, name);
  ConfigPost own{};
  for (std::size_t field = 0; field < kNumFields; ++field) own.values[field] = own_fields[field].second;
  name.name.copy(own.name.data(), kMaxNameBytes - 1);
  const std::vector<ConfigPost> posts =
      group.gather({.kind = CallKind::kCreateDispatcher}, Phase::kCreate, own, complaint);
  for (std::size_t peer = 0; peer < posts.size(); ++peer) {
    for (std::size_t field = 0; field < kNumFields; ++field) {
      // Compared with rank 0 rather than with this rank, so that every rank reports the same pair.
      if (posts[peer].values[field] == posts[0].values[field]) continue;
      const std::string_view field_name = own_fields[field].first;
      const auto text_of = [&](std::size_t rank) {
        return field == kNameField ? std::string(posts[rank].name.data())
                                   : value_text(field_name, posts[rank].values[field]);
      };
      throw AgreedError(
          ErrorCode::kShapeMismatch,
          fmt::format("{} differs: rank {} has {}, rank {} has {}; all ranks must give the same configuration",
                      field_name, group.first_member(), text_of(0), peer, text_of(peer)),
          {.rank = group.rank(), .peer_rank = static_cast<int>(peer), .phase = Phase::kCreate});
    }
  }
}

}  // namespace epistle
