// Configurations at the edges of their types: refused with a typed error on all ranks, or sized without overflow.
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <rapidcheck.h>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "dispatch/call/dispatcher_functions.hpp"
#include "dispatch/call/resolved_config.hpp"
#include "support/property.hpp"
#include "support/round_trip.hpp"
#include "topology/memory.hpp"

namespace epistle::testing {
namespace {

constexpr int kNumConfigs = 4000;
constexpr int kNumRanks = 2;
// What a test may take of the machine.
constexpr std::int64_t kMaxTestBytes = std::int64_t{32} << 20;
constexpr std::int64_t kPageBytes = 4096;
constexpr std::int64_t kDevicePageBytes = std::int64_t{2} << 20;

__extension__ using Wide = __int128;

/// A value at, or next to, an edge.
rc::Gen<std::int64_t> edge() {
  constexpr std::int64_t kMin = std::numeric_limits<std::int64_t>::min();
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  constexpr std::int64_t kTwo31 = std::int64_t{1} << 31;
  return rc::gen::oneOf(
      rc::gen::element<std::int64_t>(0, 1, -1, 2, kMin, kMax, kMin + 1, kMax - 1, kTwo31, kTwo31 - 1, -kTwo31),
      rc::gen::map(rc::gen::pair(rc::gen::inRange(0, 63), rc::gen::inRange(-1, 2)), [](const auto& power) {
        return static_cast<std::int64_t>((std::uint64_t{1} << static_cast<unsigned>(power.first)) +
                                         static_cast<std::uint64_t>(power.second));
      }));
}

DispatcherConfig good_config() {
  DispatcherConfig config;
  config.hidden = 32;
  config.num_experts = 8;
  config.top_k = 2;
  config.max_tokens = 16;
  return config;
}

/// Sets one field to `value`, as far as its type holds it.
void set_field(DispatcherConfig& config, HostOptions& options, int field, std::int64_t value) {
  const auto narrow = static_cast<std::int32_t>(value);
  switch (field) {
    case 0:
      config.hidden = value;
      break;
    case 1:
      config.input = static_cast<DType>(narrow);
      break;
    case 2:
      config.raw_scale_bytes = value;
      break;
    case 3:
      config.num_experts = narrow;
      break;
    case 4:
      config.top_k = narrow;
      break;
    case 5:
      config.max_tokens = value;
      break;
    case 6:
      config.layout = ExpertBlocks{.rows_per_expert = value};
      break;
    case 7:
      config.layout = ExpertMajor{.alignment = narrow};
      break;
    case 8:
      config.sizing = Capacity{.rows_per_rank = value};
      break;
    case 9:
      config.wire = Fp8Blocks{.scales = static_cast<ScaleFormat>(narrow)};
      break;
    case 10:
      config.overflow = static_cast<OverflowPolicy>(narrow);
      break;
    case 11:
      config.order = static_cast<SumOrder>(narrow);
      break;
    case 12:
      config.expert_output = static_cast<DType>(narrow);
      break;
    case 13:
      config.expert_output_hidden = value;
      break;
    case 14:
      config.num_buffers = narrow;
      break;
    case 15:
      config.max_handles = narrow;
      break;
    case 16:
      config.wire = Fp8Blocks{.scales = narrow % 2 == 0 ? ScaleFormat::kFp32 : ScaleFormat::kUe8m0,
                              .order = static_cast<ScaleOrder>(narrow)};
      break;
    default:
      options.num_workers = narrow;
      break;
  }
}
constexpr int kNumFields = 18;

struct EdgeCase {
  DispatcherConfig config;
  HostOptions options;
};

/// Raw payloads and capacity sizing as well, with one to four fields at an edge.
EdgeCase edge_case() {
  EdgeCase edges{.config = good_config(), .options = {}};
  if (*rc::gen::arbitrary<bool>()) {
    edges.config.input = DType::kRaw;
    edges.config.raw_scale_bytes = 1;
  }
  set_layout(edges.config,
             *rc::gen::element(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor, OutputLayout::kExpertBlocks),
             *rc::gen::element(SizingMode::kExact, SizingMode::kCapacity), 64);
  const int num_changes = *rc::gen::inRange(1, 5);
  for (int change = 0; change < num_changes; ++change) {
    set_field(edges.config, edges.options, *rc::gen::inRange(0, kNumFields), *edge());
  }
  return edges;
}

std::optional<ResolvedConfig> resolve(const DispatcherConfig& config) {
  try {
    return resolve_config(config, kNumRanks);
  } catch (const Error& error) {
    RC_ASSERT(error.code() == ErrorCode::kInvalidArgument || error.code() == ErrorCode::kUnsupported);
    return std::nullopt;
  }
}

BufferPlan plan_of(const DispatcherInfo& info, const ResolvedConfig& config) {
  return DispatcherInfo::Functions::of(info).plan(config, kNumRanks);
}

/// Of received rows; low_latency on the host: of the routing that a rank lays out for the others, in two sets. So does
/// auto where all calls are of few tokens.
Wide record_bytes(const DispatcherInfo& info, const BufferPlan& plan, const ResolvedConfig& config) {
  const DispatchLayout& layout = plan.layout();
  const RowDemand& most = plan.max_demand();
  if (info.device() == Device::kCuda) return Wide{most.receive_pairs} * layout.pair_record_bytes();
  const DispatcherInfo& few = find_dispatcher("low_latency");
  const bool has_few = config.max_tokens > 0 && config.top_k > 0 &&
                       config.max_tokens <= DispatcherInfo::Functions::of(few).best_up_to(config, kNumRanks);
  if (info.name() == few.name() || (info.name() == "auto" && has_few)) {
    return Wide{2} * layout.params().max_tokens * layout.params().top_k * (sizeof(std::int32_t) + sizeof(float));
  }
  return Wide{most.output_rows} * layout.record_bytes();
}

/// In columns, every matrix has as many rows as make a multiple of four.
Wide received_scale_bytes(const LayoutParams& params, std::int64_t num_rows) {
  if (params.scale_order == ScaleOrder::kRows) return Wide{num_rows} * params.scale_bytes;
  const bool has_blocks = params.layout == OutputLayout::kExpertBlocks;
  const std::int64_t matrix_rows = has_blocks ? params.capacity_rows : num_rows;
  const std::int64_t num_matrices = has_blocks ? num_rows / matrix_rows : 1;
  return Wide{num_matrices} * params.scale_bytes * ((matrix_rows + 3) / 4 * 4);
}

void expect_exact_sizes(const DispatcherInfo& info, const ResolvedConfig& config) {
  const BufferPlan plan = plan_of(info, config);
  const bool on_device = info.device() == Device::kCuda;
  const std::int64_t page_bytes = on_device ? kDevicePageBytes : kPageBytes;
  const LayoutParams& params = plan.layout().params();
  const RowDemand& most = plan.max_demand();
  const std::array<std::pair<BufferSection, Wide>, 4> sections = {
      {{BufferSection::kRecords, record_bytes(info, plan, config)},
       {BufferSection::kReceiveRows, Wide{most.output_rows} * params.row_bytes},
       {BufferSection::kReceiveScales, received_scale_bytes(params, most.output_rows)},
       {BufferSection::kCombineRows, Wide{most.output_rows} * params.combine_row_bytes}}};
  const SectionBytes largest = plan.section_bytes(most);
  for (const auto& [section, bytes] : sections) {
    const Wide pages = (bytes + page_bytes - 1) / page_bytes;
    RC_ASSERT(Wide{largest[section]} == pages * page_bytes);
  }
  Wide total = 0;
  for (const BufferSection section : kBufferSections) {
    RC_ASSERT(largest[section] >= 0);
    total += Wide{largest[section]} * plan.section_copies(section);
  }
  RC_ASSERT(Wide{plan.reserved_bytes()} == total);
}

TEST(ConfigProperty, SizesAreExactOrTheConfigurationIsRefused) {
  check_property(kNumConfigs, [] {
    const auto resolved = resolve(edge_case().config);
    if (!resolved) return;
    for (const DispatcherInfo* info : dispatchers()) expect_exact_sizes(*info, *resolved);
  });
}

TEST(ConfigProperty, CreationSucceedsOrIsRefusedOnAllRanks) {
  check_property(kNumConfigs / 10, [] {
    const EdgeCase edges = edge_case();
    const auto resolved = resolve(edges.config);
    const bool takes_workers = edges.options.num_workers > 0 && edges.options.num_workers <= 1024;
    const bool is_served = !find_dispatcher("direct").cannot_serve(edges.config, kNumRanks).has_value();
    if (resolved) {
      // What fits is taken; a test takes little, or asks for what cannot be had.
      const BufferPlan plan = plan_of(find_dispatcher("direct"), *resolved);
      const std::int64_t bytes = plan.buffer_bytes(plan.initial_demand());
      RC_PRE(bytes <= kMaxTestBytes || bytes > available_memory().bytes);
      RC_PRE(edges.options.num_workers <= 4 || !takes_workers);
    }
    std::array<Outcome, kNumRanks> outcomes;
    run_thread_ranks(kNumRanks, [&](Group& group) {
      outcomes[static_cast<std::size_t>(group.rank())] =
          outcome_of([&] { (void)Dispatcher(group, "direct", edges.config, edges.options); });
      group.barrier();  // whatever came of it
    });
    RC_ASSERT(outcomes[0].has_value() == outcomes[1].has_value());
    if (!outcomes[0]) return;
    RC_ASSERT(outcomes[0]->code() == outcomes[1]->code());
    if (resolved && is_served && takes_workers) RC_ASSERT(outcomes[0]->code() == ErrorCode::kOutOfMemory);
  });
}

}  // namespace
}  // namespace epistle::testing
