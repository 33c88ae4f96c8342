#include "dispatch/call/config_check.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <vector>

#include <fmt/format.h>

namespace epistle {
namespace {

constexpr std::int32_t kMaxAlignment = 1024;
constexpr std::int32_t kMaxWorkers = 1024;
// Far beyond any model; keep every product of sizes within 64 bits.
constexpr std::int64_t kMaxHidden = std::int64_t{1} << 24;
constexpr std::int64_t kMaxTokens = std::int64_t{1} << 28;
constexpr std::int32_t kMaxExperts = std::int32_t{1} << 20;

// Bytes of scales that belong to a row: as much as the widest row itself.
constexpr std::int64_t kMaxRawScaleBytes = kMaxHidden * static_cast<std::int64_t>(sizeof(float));

[[noreturn]] void reject(const std::string& message) { throw Error(ErrorCode::kInvalidArgument, message); }

/// The values of an enumeration are those up to `last`.
template <typename Enum>
void check_enum(Enum value, Enum last, std::string_view field) {
  const auto number = static_cast<std::int64_t>(value);
  if (number < 0 || number > static_cast<std::int64_t>(last)) {
    reject(fmt::format("{} has the value {}; it goes from 0 to {}", field, number, static_cast<std::int64_t>(last)));
  }
}

void check_enums(const DispatcherConfig& config) {
  check_enum(config.dtype, DType::kRaw, "dtype");
  check_enum(config.combine_dtype, DType::kRaw, "combine_dtype");
  check_enum(config.layout, OutputLayout::kExpertSlots, "layout");
  check_enum(config.sizing, Sizing::kCapacity, "sizing");
  check_enum(config.overflow, OverflowPolicy::kDrop, "overflow");
  check_enum(config.combine, CombineMode::kFlat, "combine");
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

void check_ranges(const DispatcherConfig& config, int num_ranks) {
  if (config.num_experts < 1 || config.num_experts > kMaxExperts) {
    reject(fmt::format("num_experts is {}; it must be between 1 and {}", config.num_experts, kMaxExperts));
  }
  if (config.top_k < 1 || config.top_k > config.num_experts) {
    reject(fmt::format("top_k is {}; it must be between 1 and num_experts = {}", config.top_k, config.num_experts));
  }
  if (config.max_tokens < 0 || config.max_tokens > kMaxTokens) {
    reject(fmt::format("max_tokens is {}; it must be between 0 and {}", config.max_tokens, kMaxTokens));
  }
  if (config.alignment < 1 || config.alignment > kMaxAlignment) {
    reject(fmt::format("alignment is {}; it must be between 1 and {}", config.alignment, kMaxAlignment));
  }
  if (config.num_workers < 1 || config.num_workers > kMaxWorkers) {
    reject(fmt::format("num_workers is {}; it must be between 1 and {}", config.num_workers, kMaxWorkers));
  }
  if (config.raw_scale_bytes < 0 || config.raw_scale_bytes > kMaxRawScaleBytes ||
      (config.raw_scale_bytes > 0 && config.dtype != DType::kRaw)) {
    reject(fmt::format("raw_scale_bytes is {} with dtype {}; it takes 0 to {} bytes, and only with dtype raw",
                       config.raw_scale_bytes, to_string(config.dtype), kMaxRawScaleBytes));
  }
  const bool needs_capacity = config.sizing == Sizing::kCapacity || config.layout == OutputLayout::kExpertSlots;
  if (needs_capacity != (config.capacity_rows > 0)) {
    reject(fmt::format(
        "capacity_rows is {} with sizing {} and layout {}; capacity sizing and expert_slots need a positive "
        "number of rows, exact sizing takes 0",
        config.capacity_rows, to_string(config.sizing), to_string(config.layout)));
  }
  constexpr std::int64_t kMaxRows = std::numeric_limits<std::int32_t>::max();
  if (config.capacity_rows > kMaxRows) {
    reject(fmt::format("capacity_rows is {}; row numbers end at {}", config.capacity_rows, kMaxRows));
  }
  const std::int64_t max_assignments =
      config.max_tokens * static_cast<std::int64_t>(num_ranks) * static_cast<std::int64_t>(config.top_k);
  const std::int64_t capacity_blocks = config.layout == OutputLayout::kExpertSlots ? config.num_experts : 1;
  const std::int64_t max_rows = std::max(max_assignments, config.capacity_rows * capacity_blocks) +
                                static_cast<std::int64_t>(config.num_experts) * config.alignment;
  if (max_rows > kMaxRows) {
    reject(fmt::format(
        "max_tokens {} x {} ranks x top_k {} (or capacity_rows {} x {}) makes {} rows; row numbers "
        "end at {}: use fewer tokens per call",
        config.max_tokens, num_ranks, config.top_k, config.capacity_rows, capacity_blocks, max_rows, kMaxRows));
  }
}

/// The fields that must agree, by name. num_workers may differ.
using Field = std::pair<std::string_view, std::int64_t>;
constexpr std::size_t kNumFields = 17;
constexpr std::size_t kNameField = 0;  ///< holds a hash; the name itself is sent as text

std::array<Field, kNumFields> fields_of(const DispatcherConfig& config, std::string_view dispatcher_name) {
  std::uint64_t name_code = 0;
  for (const char c : dispatcher_name) name_code = name_code * 31 + static_cast<unsigned char>(c);
  const auto code = [](auto value) { return static_cast<std::int64_t>(value); };
  return {{{"dispatcher", code(name_code)},
           {"hidden", config.hidden},
           {"dtype", code(config.dtype)},
           {"raw_scale_bytes", config.raw_scale_bytes},
           {"num_experts", config.num_experts},
           {"top_k", config.top_k},
           {"max_tokens", config.max_tokens},
           {"layout", code(config.layout)},
           {"alignment", config.alignment},
           {"sizing", code(config.sizing)},
           {"capacity_rows", config.capacity_rows},
           {"overflow", code(config.overflow)},
           {"combine", code(config.combine)},
           {"apply_weights", code(config.apply_weights)},
           {"zero_padding", code(config.zero_padding)},
           {"combine_dtype", code(config.combine_dtype)},
           {"combine_hidden", config.combine_hidden}}};
}

/// A field's value as its user writes it.
std::string value_text(std::string_view field, std::int64_t value) {
  if (field == "dtype" || field == "combine_dtype") return std::string(to_string(static_cast<DType>(value)));
  if (field == "layout") return std::string(to_string(static_cast<OutputLayout>(value)));
  if (field == "sizing") return std::string(to_string(static_cast<Sizing>(value)));
  if (field == "overflow") return std::string(to_string(static_cast<OverflowPolicy>(value)));
  if (field == "combine") return std::string(to_string(static_cast<CombineMode>(value)));
  if (field == "apply_weights" || field == "zero_padding") return value != 0 ? "true" : "false";
  return std::to_string(value);
}

constexpr std::size_t kMaxNameBytes = 64;

/// What every rank tells the others when a dispatcher is created.
struct ConfigPost {
  std::array<std::int64_t, kNumFields> values;
  std::array<char, kMaxNameBytes> name;  ///< the dispatcher's
};

}  // namespace

DispatcherConfig resolve_config(const DispatcherConfig& config, int num_ranks) {
  check_enums(config);
  DispatcherConfig resolved = config;
  check_row_bytes(config.hidden, config.dtype, "hidden");
  check_ranges(config, num_ranks);
  if (resolved.combine_dtype == DType::kRaw) {
    resolved.combine_dtype = can_be_summed(config.dtype) ? config.dtype : DType::kBf16;
  }
  if (!can_be_summed(resolved.combine_dtype)) {
    throw Error(ErrorCode::kUnsupported, fmt::format("combine_dtype {} cannot be summed; use bf16, fp16 or fp32",
                                                     to_string(resolved.combine_dtype)));
  }
  if (resolved.combine_hidden == 0 && config.dtype != DType::kRaw) resolved.combine_hidden = config.hidden;
  // A raw payload without combine_hidden is only ever dispatched.
  if (resolved.combine_hidden != 0) check_row_bytes(resolved.combine_hidden, resolved.combine_dtype, "combine_hidden");
  return resolved;
}

LayoutParams to_layout_params(const DispatcherConfig& resolved, int num_ranks, Transport transport) {
  LayoutParams params;
  params.num_ranks = num_ranks;
  params.num_experts = resolved.num_experts;
  params.top_k = resolved.top_k;
  params.max_tokens = resolved.max_tokens;
  params.row_bytes = resolved.hidden * dtype_bytes(resolved.dtype);
  params.scale_bytes =
      resolved.dtype == DType::kFp8E4m3
          ? (resolved.hidden + kScaleBlockElements - 1) / kScaleBlockElements * static_cast<std::int64_t>(sizeof(float))
          : resolved.raw_scale_bytes;
  params.combine_row_bytes = resolved.combine_hidden * dtype_bytes(resolved.combine_dtype);
  params.layout = resolved.layout;
  params.alignment = resolved.alignment;
  params.sizing = resolved.sizing;
  params.capacity_rows = resolved.capacity_rows;
  params.combine = resolved.combine;
  params.transport = transport;
  return params;
}

void agree_on_config(GroupImpl& group, const DispatcherConfig& config, std::string_view dispatcher_name,
                     const Complaint& complaint) {
  const Call call{.kind = CallKind::kCreateDispatcher};
  (void)group.agree(call, Phase::kCreate, complaint);
  const auto own_fields = fields_of(config, dispatcher_name);
  ConfigPost own{};
  for (std::size_t field = 0; field < kNumFields; ++field) own.values[field] = own_fields[field].second;
  dispatcher_name.copy(own.name.data(), kMaxNameBytes - 1);
  std::vector<ConfigPost> posts(static_cast<std::size_t>(group.num_ranks()));
  group.gather(call, &own, sizeof(own), posts.data(), Phase::kCreate);
  for (std::size_t peer = 0; peer < posts.size(); ++peer) {
    for (std::size_t field = 0; field < kNumFields; ++field) {
      // Compared with rank 0 rather than with this rank, so that every rank reports the same pair.
      if (posts[peer].values[field] == posts[0].values[field]) continue;
      const std::string_view name = own_fields[field].first;
      const auto text_of = [&](std::size_t rank) {
        return field == kNameField ? std::string(posts[rank].name.data()) : value_text(name, posts[rank].values[field]);
      };
      throw AgreedError(
          ErrorCode::kShapeMismatch,
          fmt::format("{} differs: rank 0 has {}, rank {} has {}; all ranks must give the same configuration", name,
                      text_of(0), peer, text_of(peer)),
          {.rank = group.rank(), .peer_rank = static_cast<int>(peer), .phase = Phase::kCreate});
    }
  }
}

}  // namespace epistle
